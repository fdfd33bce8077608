"""Holds the connections: one handler for every path, and quiet about TLS on the plain port."""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest, RequestHandler, Response, Server, StreamResponse

from proxy.errors import RequestInvalid

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]

_TLS_HANDSHAKE: Final = 0x16
KEEPALIVE_SECONDS: Final = 75.0

log = structlog.get_logger(__name__)


class _Connection(RequestHandler):
    """A connection that hangs up on a TLS hello: Podman and Skopeo try that first."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        if self._request_count == 0 and data[:1] == bytes([_TLS_HANDSHAKE]):
            self.force_close()
            return
        super().data_received(data)

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


class RegistryServer(Server):
    """Makes connections for ``ServerRunner``."""

    def __init__(self, registry: Handler, admin: Handler) -> None:
        async def dispatch(request: BaseRequest) -> StreamResponse:
            path = request.rel_url.raw_path
            if path.startswith("/-/") or path == "/metrics":
                return await admin(request)
            return await registry(request)

        super().__init__(
            dispatch,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
        )

    def __call__(self) -> RequestHandler:
        """Return the protocol of one new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)
