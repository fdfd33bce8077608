"""One client connection: aiohttp's protocol, with the response cache in front of its parser.

Equal bytes are equal requests if they arrive between two requests, end where a request ends, and
contain exactly one. The response cache only stores and looks up such bytes; everything else goes to
aiohttp. A lookup is one access to a dict, while aiohttp parses headers, builds objects and starts a
task.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import EMPTY_PAYLOAD
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest, RequestHandler, Response, Server, StreamResponse

from proxy.access.identity import Certificate
from proxy.core.errors import RequestInvalid
from proxy.web.client_certificate import client_certificate
from proxy.web.clients import Clients
from proxy.web.closing import Linger
from proxy.web.pacing import PIECE, SendBuffer

if TYPE_CHECKING:
    import asyncio
    import socket

Lookup = Callable[[bytes, str | None, Certificate | None], tuple[bytes, bytes] | None]
"""Returns header block and body for the bytes of a request; None: not cached.

The client is identified by its address, and by its certificate if it has one.
"""

KEEPALIVE_SECONDS: Final = 75.0
_TLS_HANDSHAKE: Final = b"\x16"
_NO_TLS_TEXT: Final = b"This port serves http, not https.\n"
_NO_TLS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nServer: millpond\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_NO_TLS_TEXT), _NO_TLS_TEXT)
)
"""Response to a TLS ClientHello: clients fall back to http only after a response in HTTP."""

_END: Final = b"\r\n\r\n"
_ONE_WRITE: Final = 16 * 1024

log = structlog.get_logger(__name__)


class Connection(RequestHandler):
    """A connection of one client.

    ``head`` holds the bytes of the request in progress if they contain that request and no more.
    ``certificate`` has the names of the client's certificate, None without one.
    """

    __slots__ = (
        *("_client", "_clients", "_finished", "_is_at_boundary", "_linger", "_lookup", "_wire"),
        *("certificate", "head"),
    )

    def __init__(
        self,
        server: Server,
        *,
        loop: "asyncio.AbstractEventLoop",
        lookup: Lookup,
        clients: Clients,
        **more: Any,
    ) -> None:
        super().__init__(server, loop=loop, **more)
        self._lookup = lookup
        self._clients = clients
        self._wire: asyncio.Transport | None = None  # aiohttp forgets its own before it is closed
        self._is_at_boundary = True  # all bytes so far made whole requests
        self._client: str | None = None
        self._finished = 0
        """Requests whose response was written, and after which the connection stays open."""
        self.head: bytes | None = None
        self.certificate: Certificate | None = None
        self._linger: Linger | None = None

    def data_received(self, data: bytes) -> None:
        """Answer from the response cache, or pass the bytes to aiohttp."""
        is_alone = self._is_at_boundary and self._is_idle()
        if is_alone:
            answer = self._lookup(data, self._client, self.certificate)
            if answer is not None:
                self._send(*answer)
                return
        if self._linger is not None:
            self._linger.received(data)
            return
        if self._is_at_boundary and self._request_count == 0 and data[:1] == _TLS_HANDSHAKE:
            self._refuse_tls()
            return
        queued = len(self._messages)
        super().data_received(data)
        parsed = len(self._messages) - queued
        self._is_at_boundary = (
            parsed > 0
            and data.endswith(_END)
            and self._messages[-1][1] is EMPTY_PAYLOAD
            and not self._upgraded
        )
        self.head = data if is_alone and self._is_at_boundary and parsed == 1 else None

    async def finish_response(
        self, request: BaseRequest, resp: StreamResponse, start_time: float | None
    ) -> tuple[StreamResponse, bool]:
        """Write the rest of a response; the next request may be answered from the cache at once.

        aiohttp waits for the next request only one turn of the loop later. A fast client has sent
        it by then, and all requests of such a connection would take the general path.
        """
        response, is_cut_off = await super().finish_response(request, resp, start_time)
        if response.keep_alive and not is_cut_off:
            self._count_finished()
        return response, is_cut_off

    def connection_made(self, transport: "asyncio.BaseTransport") -> None:
        """Register the connection."""
        super().connection_made(transport)
        peer = self.peername
        self._client = str(peer[0]) if isinstance(peer, (list, tuple)) else peer
        self._wire = self.transport
        self.certificate = client_certificate(transport)
        if self.ssl_context is not None:
            assert self.transport is not None
            self.transport.set_write_buffer_limits(high=PIECE)  # uvloop's own is 512 KiB
        self._clients.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Unregister the connection."""
        if self._linger is not None:
            self._linger.end()
        self._wire = None
        self._clients.remove(self)
        super().connection_lost(exc)

    @property
    def send_buffer(self) -> SendBuffer:
        """Accounts for long bodies while they are sent."""
        return self._clients.send_buffer

    def socket(self) -> "socket.socket | None":
        """Return the socket, None once it is closed."""
        return None if self._wire is None else self._wire.get_extra_info("socket")

    def cut_off(self, reason: str) -> None:
        """Close the connection immediately; buffered bytes are lost."""
        if self._wire is not None:
            log.info("client cut off", client=self._client, reason=reason)
            self._wire.abort()

    def idle_since(self) -> float | None:
        """Return the loop time of the last response, None while a request is in progress."""
        if self._linger is not None:
            return self._linger.began
        if self._wire is None or not self._is_idle() or self._wire.get_write_buffer_size():
            return None
        return self._next_keepalive_close_time - KEEPALIVE_SECONDS

    def close_idle(self) -> None:
        """Close an idle connection."""
        if self._linger is not None and self._wire is not None:
            self._wire.abort()
        else:
            self.force_close()

    def linger(self) -> None:
        """Stop reading requests, and close once the client has received the last response."""
        transport = self.transport
        if transport is None or transport.is_closing() or self._linger is not None:
            return
        self._force_close = True  # ends aiohttp's handler but leaves the transport open
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
        """Answer malformed HTTP with an error document, without a traceback in the log."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.debug("malformed request", client=request.remote, reason=type(exc).__name__)
        error = RequestInvalid("malformed HTTP request")
        headers = {"Content-Type": "application/json", "Server": "millpond"}
        response = _LastResponse(self, status=error.status, body=error.body(), headers=headers)
        response.force_close()
        return response

    def _refuse_tls(self) -> None:
        assert self.transport is not None
        log.debug("TLS handshake on a plain HTTP port", client=self._client)
        self.transport.write(_NO_TLS)
        self.linger()

    @property
    def is_answering(self) -> bool:
        """A request is in progress."""
        return self._current_request is not None

    def _is_idle(self) -> bool:
        """Return True if all requests are answered and the client has read all responses."""
        return (
            self._finished == self._request_count
            and self._linger is None
            and not self.writing_paused
            and self.transport is not None
            and not self.transport.is_closing()
        )

    def _send(self, head: bytes, body: bytes) -> None:
        """Send a response to a request that aiohttp does not see."""
        assert self.transport is not None
        if len(body) <= _ONE_WRITE:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        self._request_count += 1  # keep aiohttp's TLS check right
        self._count_finished()

    def _count_finished(self) -> None:
        """Count a response, and begin aiohttp's idle timeout anew."""
        self._finished += 1
        self._next_keepalive_close_time = self._loop.time() + KEEPALIVE_SECONDS


class _LastResponse(Response):
    """A response after which the connection closes, while the client may still be sending."""

    def __init__(self, connection: Connection, **more: Any) -> None:
        super().__init__(**more)
        self._connection = connection

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        self._connection.linger()
