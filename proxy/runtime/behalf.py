"""For whom a task works, as a key: what is only for one client is kept and shared by this key.

A new task inherits the value (PEP 567), so work in the background is for the client that began it.
"""

from contextvars import ContextVar
from typing import Final

BEHALF: Final[ContextVar[str]] = ContextVar("behalf", default="")
"""Empty: for nobody in particular."""
