"""Ids of requests, which answers and log lines carry: the client's own one, or a random one."""

import re
from contextvars import ContextVar
from random import getrandbits
from typing import Final

HEADER: Final = "X-Request-Id"

_ACCEPTED: Final = re.compile(r"[!#-\[\]-~]{1,128}")
"""Printable ASCII except spaces, and except quotes and backslashes, which JSON escapes."""

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def make() -> str:
    """Return a new id."""
    return f"{getrandbits(64):016x}"


def accepted(sent: str | None) -> str | None:
    """Return the id that a client sent, None if it sent none or one that is not accepted."""
    return sent if sent is not None and _ACCEPTED.fullmatch(sent) else None


def use(request_id: str) -> None:
    """Add an id to the log lines of this task, and of tasks that it starts."""
    _current.set(request_id)


def current() -> str | None:
    """Return the id of the request that this task works for; None: it works for none."""
    return _current.get()
