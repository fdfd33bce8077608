"""Holds the connections: one handler for every path."""

from collections.abc import Awaitable, Callable

from aiohttp.web import BaseRequest, RequestHandler, Server, StreamResponse

from proxy.web.connection import KEEPALIVE_SECONDS, Answers, Connection

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


class RegistryServer(Server):
    """Makes connections for ``ServerRunner``."""

    def __init__(self, registry: Handler, admin: Handler, answers: Answers) -> None:
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
        self._answers = answers

    @property
    def responses(self) -> int:
        """How many requests are being answered now."""
        return sum(
            isinstance(connection, Connection) and connection.is_answering
            for connection in self.connections
        )

    def __call__(self) -> RequestHandler:
        """Return the protocol of one new connection."""
        return Connection(self, loop=self._loop, answers=self._answers, **self._kwargs)
