"""Answers a connection that there is no room for: 503, when to come back, and good-bye."""

import asyncio
from collections.abc import Callable
from typing import Final, cast

from proxy.core.errors import Overloaded
from proxy.web.linger import Linger

SECONDS: Final = 2.0
"""How long a refused client may take to send its request."""

_BODY: Final = Overloaded("too many connections; try again").body()
_ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nServer: millpond\r\nContent-Type: application/json\r\n"
    b"Docker-Distribution-Api-Version: registry/2.0\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Refusal(asyncio.Protocol):
    """A connection whose first request is answered with 503; ``on_end`` is called at its end."""

    def __init__(self, on_answer: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._on_answer = on_answer
        self._on_end = on_end
        self._linger: Linger | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the request: clients discard an answer that comes before it."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no base class
        self._timer = asyncio.get_running_loop().call_later(SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer once, and discard the rest."""
        assert self._transport is not None
        assert self._timer is not None
        if self._linger is not None:
            self._linger.received(data)
            return
        self._timer.cancel()
        self._on_answer()
        self._transport.write(_ANSWER)
        self._linger = Linger(self._transport, asyncio.get_running_loop())

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note the end."""
        if self._timer is not None:
            self._timer.cancel()
        if self._linger is not None:
            self._linger.end()
        self._on_end()
