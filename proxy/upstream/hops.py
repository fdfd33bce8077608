"""The way of a request through several proxies: ``Via`` (RFC 9110 §7.6.3).

What the client sent goes down in a context variable, as its login does in ``credentials.caller``.
So the requests that a client's request leads to carry the way so far, and one that comes back to
this process is recognized.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from proxy.core.errors import LoopDetected

INSTANCE: Final = f"millpond-{secrets.token_hex(8)}"
"""The name of this process in ``Via``."""

MAX_HOPS: Final = 16
MAX_BYTES: Final = 2048


class _Received(NamedTuple):
    """The way of the client's request, and whether it asks upstream to be asked again."""

    via: tuple[str, ...] = ()
    revalidates: bool = False


_NOTHING: Final = _Received()
_current: Final[ContextVar[_Received]] = ContextVar("hops", default=_NOTHING)


@contextmanager
def continuing(via: Iterable[str], *, revalidates: bool) -> Iterator[None]:
    """Send upstream the way of a request with these ``Via`` headers, until the context ends.

    Raises ``LoopDetected`` if the request has been here, or has come too far.
    """
    text = ", ".join(via)
    hops = tuple(hop.strip() for hop in text.split(",") if hop.strip())
    if any(INSTANCE in hop.split() for hop in hops):
        raise _loop("the request comes back to where it has been: two caches ask each other")
    if len(hops) >= MAX_HOPS or len(text) > MAX_BYTES:
        raise _loop(f"the request has come through too many proxies: {MAX_HOPS} are allowed")
    token = _current.set(_Received(hops, revalidates))
    try:
        yield
    finally:
        _current.reset(token)


def headers() -> dict[str, str]:
    """Return the headers that a request to a registry carries on behalf of the client's."""
    received = _current.get()
    sent = {"Via": ", ".join((*received.via, f"1.1 {INSTANCE}"))}
    return sent | ({"Cache-Control": "no-cache"} if received.revalidates else {})


def _loop(message: str) -> LoopDetected:
    error = LoopDetected(message)
    error.was_forwarded = False
    return error
