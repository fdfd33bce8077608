"""Holds the connections: one handler for every path, and quiet about TLS on the plain port."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp.web import BaseRequest, RequestHandler, Server, StreamResponse

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]

_TLS_HANDSHAKE: Final = 0x16
KEEPALIVE_SECONDS: Final = 75.0


class _Connection(RequestHandler):
    """A connection that hangs up on a TLS hello: Podman and Skopeo try that first."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        if self._request_count == 0 and data[:1] == bytes([_TLS_HANDSHAKE]):
            self.force_close()
            return
        super().data_received(data)


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
