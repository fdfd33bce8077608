"""One connection: it hangs up on TLS where there is none, and gives at once what is at hand.

Bytes that came between two requests, ended where a request ends, and made exactly one, make the
same request each time they come like that: so what was read out of them once is not read again.
``prepared`` knows the answers; here is only known when bytes stand for a request of their own.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import EMPTY_PAYLOAD
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest, RequestHandler, Response, Server, StreamResponse

from proxy.errors import RequestInvalid

if TYPE_CHECKING:
    import asyncio

Answers = Callable[[bytes, str | None], tuple[bytes, bytes] | None]
"""Returns headers and body for the bytes of a request and its client; None: not at hand."""

KEEPALIVE_SECONDS: Final = 75.0
_TLS_HANDSHAKE: Final = 0x16
_END: Final = b"\r\n\r\n"
_ONE_WRITE: Final = 16 * 1024

log = structlog.get_logger(__name__)


class Connection(RequestHandler):
    """A connection of one client. ``head``: the bytes of the request in progress, if known."""

    __slots__ = ("_answers", "_between", "_client", "head")

    def __init__(
        self, server: Server, *, loop: "asyncio.AbstractEventLoop", answers: Answers, **more: Any
    ) -> None:
        super().__init__(server, loop=loop, **more)
        self._answers = answers
        self._between = True  # all that came has been read as whole requests
        self._client: str | None = None
        self.head: bytes | None = None

    def data_received(self, data: bytes) -> None:
        """Answer at once, or let aiohttp read on."""
        is_alone = self._between and self._is_idle()
        if is_alone:
            answer = self._answers(data, self._client)
            if answer is not None:
                self._give(*answer)
                return
            if self._request_count == 0 and data[:1] == bytes([_TLS_HANDSHAKE]):
                self.force_close()
                return
        waiting = len(self._messages)
        super().data_received(data)
        came = len(self._messages) - waiting
        self._between = (
            came > 0
            and data.endswith(_END)
            and self._messages[-1][1] is EMPTY_PAYLOAD
            and not self._upgraded
        )
        self.head = data if is_alone and self._between and came == 1 else None

    def connection_made(self, transport: "asyncio.BaseTransport") -> None:
        """Note who the client is."""
        super().connection_made(transport)
        peer = self.peername
        self._client = str(peer[0]) if isinstance(peer, (list, tuple)) else peer

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer what is no request with an error document, and no noise in the log."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.debug("not a request", client=request.remote, reason=type(exc).__name__)
        error = RequestInvalid("this is not an HTTP request that can be understood")
        headers = {"Content-Type": "application/json", "Server": "millpond"}
        response = Response(status=error.status, body=error.body(), headers=headers)
        response.force_close()
        return response

    @property
    def is_answering(self) -> bool:
        """A request is being answered."""
        return self._current_request is not None

    def _is_idle(self) -> bool:
        """Tell whether aiohttp waits for a request, and the client has taken what it was sent."""
        waiter = self._waiter
        return (
            waiter is not None
            and not waiter.done()
            and not self.writing_paused
            and self.transport is not None
            and not self.transport.is_closing()
        )

    def _give(self, head: bytes, body: bytes) -> None:
        """Send an answer, as a request that aiohttp has never seen."""
        assert self.transport is not None
        if len(body) <= _ONE_WRITE:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        self._request_count += 1
        self._next_keepalive_close_time = self._loop.time() + KEEPALIVE_SECONDS
