"""The path of a request through several proxies: ``Via`` (RFC 9110 §7.6.3).

A context variable carries the client's header, like its login in ``credentials.caller``. So the
requests that a client's request causes carry the path so far, and a request that returns to this
process is recognized.
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
    """The path of the client's request, and whether it demands a check at the registry."""

    via: tuple[str, ...] = ()
    revalidates: bool = False


_NOTHING: Final = _Received()
_current: Final[ContextVar[_Received]] = ContextVar("hops", default=_NOTHING)


@contextmanager
def continuing(via: Iterable[str], *, revalidates: bool) -> Iterator[None]:
    """Extend these ``Via`` headers in requests to upstream, until the context ends.

    Raises ``LoopDetected`` if the request has been here before, or has passed too many proxies.
    """
    text = ", ".join(via)
    hops = tuple(hop.strip() for hop in text.split(",") if hop.strip())
    if any(INSTANCE in hop.split() for hop in hops):
        raise _loop("the request returned to a cache that sent it; look for a loop in upstreams")
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
