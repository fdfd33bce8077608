"""One connection: it refuses TLS where there is none, and gives at once what is at hand.

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

from proxy.core.errors import RequestInvalid
from proxy.web.clients import Clients
from proxy.web.linger import Linger
from proxy.web.paced import PIECE, Outbox

if TYPE_CHECKING:
    import asyncio
    import socket

Answers = Callable[[bytes, str | None], tuple[bytes, bytes] | None]
"""Returns headers and body for the bytes of a request and its client; None: not at hand."""

KEEPALIVE_SECONDS: Final = 75.0
_TLS_HANDSHAKE: Final = b"\x16"
_NO_TLS_TEXT: Final = b"This port serves http, not https.\n"
_NO_TLS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nServer: millpond\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_NO_TLS_TEXT), _NO_TLS_TEXT)
)
"""Answer to a TLS hello. Clients fall back to http only when they read an answer in HTTP."""

_END: Final = b"\r\n\r\n"
_ONE_WRITE: Final = 16 * 1024

log = structlog.get_logger(__name__)


class Connection(RequestHandler):
    """A connection of one client. ``head``: the bytes of the request in progress, if known."""

    __slots__ = ("_answers", "_between", "_client", "_clients", "_linger", "_wire", "head")

    def __init__(
        self,
        server: Server,
        *,
        loop: "asyncio.AbstractEventLoop",
        answers: Answers,
        clients: Clients,
        **more: Any,
    ) -> None:
        super().__init__(server, loop=loop, **more)
        self._answers = answers
        self._clients = clients
        self._wire: asyncio.Transport | None = None  # kept while it closes, as aiohttp does not
        self._between = True  # all that came has been read as whole requests
        self._client: str | None = None
        self.head: bytes | None = None
        self._linger: Linger | None = None

    def data_received(self, data: bytes) -> None:
        """Answer at once, or let aiohttp read on."""
        is_alone = self._between and self._is_idle()
        if is_alone:
            answer = self._answers(data, self._client)
            if answer is not None:
                self._give(*answer)
                return
        if self._linger is not None:
            self._linger.received(data)
            return
        if self._between and self._request_count == 0 and data[:1] == _TLS_HANDSHAKE:
            self._refuse_tls()
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
        self._wire = self.transport
        if self.ssl_context is not None:
            assert self.transport is not None
            self.transport.set_write_buffer_limits(high=PIECE)  # uvloop's own is 512 KiB
        self._clients.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End all that concerns the client."""
        if self._linger is not None:
            self._linger.end()
        self._wire = None
        self._clients.remove(self)
        super().connection_lost(exc)

    @property
    def outbox(self) -> Outbox:
        """Where long bodies are counted while they are sent."""
        return self._clients.outbox

    def socket(self) -> "socket.socket | None":
        """Return the socket; None when it is closed."""
        return None if self._wire is None else self._wire.get_extra_info("socket")

    def cut_off(self, reason: str) -> None:
        """Close the connection at once, without what is still to be sent."""
        if self._wire is not None:
            log.info("client cut off", client=self._client, reason=reason)
            self._wire.abort()

    def idle_since(self) -> float | None:
        """Return since when the client has had all its answers; None when it is served."""
        if self._linger is not None:
            return self._linger.began
        if self._wire is None or not self._is_idle() or self._wire.get_write_buffer_size():
            return None
        return self._next_keepalive_close_time - KEEPALIVE_SECONDS

    def close_idle(self) -> None:
        """Close the connection, as the client waits for nothing."""
        if self._linger is not None and self._wire is not None:
            self._wire.abort()
        else:
            self.force_close()

    def linger(self) -> None:
        """Close once the client has received what was sent; nothing more is read as a request."""
        transport = self.transport
        if transport is None or transport.is_closing() or self._linger is not None:
            return
        self._force_close = True  # aiohttp ends its handler, and closes nothing
        if self._waiter is not None:
            self._waiter.cancel()
        self._linger = Linger(transport, self._loop)

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
        response = _LastAnswer(self, status=error.status, body=error.body(), headers=headers)
        response.force_close()
        return response

    def _refuse_tls(self) -> None:
        assert self.transport is not None
        log.debug("TLS on a port without it", client=self._client)
        self.transport.write(_NO_TLS)
        self.linger()

    @property
    def is_answering(self) -> bool:
        """A request is being answered."""
        return self._current_request is not None

    def _is_idle(self) -> bool:
        """Tell whether aiohttp waits for a request, and the client has taken what it was sent."""
        waiter = self._waiter
        # Bytes may come before aiohttp's handler runs for the first time, and sets its waiter.
        is_waiting = self._request_count == 0 if waiter is None else not waiter.done()
        return (
            is_waiting
            and self._linger is None
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


class _LastAnswer(Response):
    """An answer while the client may still be sending; the connection closes after it."""

    def __init__(self, connection: Connection, **more: Any) -> None:
        super().__init__(**more)
        self._connection = connection

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        self._connection.linger()
