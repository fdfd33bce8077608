"""The last response on a connection: 503 at the limit of connections, and the lingering close.

The kernel resets a socket that is closed while received bytes are unread. The reset can overtake
the response, or fail the client's next write, and the client never reads why it was refused. So
the sending side is shut down first, and what the client still sends is discarded until it closes
(RFC 9112 §9.6).
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

from proxy.core.errors import Overloaded

LINGER_SECONDS: Final = 5.0
"""Time that a client has to close."""

MAX_DISCARDED: Final = 16 * 1024 * 1024
"""Bytes that are discarded before the connection is aborted."""

REQUEST_SECONDS: Final = 2.0
"""Time that a refused client has to send its request."""

_BODY: Final = Overloaded("too many connections; try again").body()
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nServer: millpond\r\nContent-Type: application/json\r\n"
    b"Docker-Distribution-Api-Version: registry/2.0\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Linger:
    """The end of one connection, after its last response was written."""

    __slots__ = ("_left", "_timer", "_transport", "began")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._left = MAX_DISCARDED
        self.began = loop.time()
        self._timer = loop.call_later(LINGER_SECONDS, transport.abort)
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
        else:  # TLS: closing it flushes, sends close_notify, and discards what still arrives
            transport.close()

    def received(self, data: bytes) -> None:
        """Discard bytes of the client."""
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()

    def end(self) -> None:
        """Stop the timer, once the connection is closed."""
        self._timer.cancel()


class Refusal(asyncio.Protocol):
    """A connection that gets 503 for its first request.

    ``on_answer`` is called when the response is sent, ``on_end`` when the connection is closed.
    """

    def __init__(self, on_answer: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._on_answer = on_answer
        self._on_end = on_end
        self._linger: Linger | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the request: clients ignore a response that arrives before it is sent."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no base class
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REQUEST_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer once, and discard the rest."""
        assert self._transport is not None
        assert self._timer is not None
        if self._linger is not None:
            self._linger.received(data)
            return
        self._timer.cancel()
        self._on_answer()
        self._transport.write(_REFUSAL)
        self._linger = Linger(self._transport, asyncio.get_running_loop())

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers."""
        if self._timer is not None:
            self._timer.cancel()
        if self._linger is not None:
            self._linger.end()
        self._on_end()
