"""The client for which a task works, as a key for data that only this client may use.

A new task inherits the value (PEP 567), so work in the background is for the client that began it.
"""

from contextvars import ContextVar
from typing import Final

CLIENT_KEY: Final[ContextVar[str]] = ContextVar("client_key", default="")
"""Empty: for no particular client."""
