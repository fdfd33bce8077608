"""Holds the connections: one handler for every path."""

from collections.abc import Awaitable, Callable

from aiohttp.web import BaseRequest, RequestHandler, Server, StreamResponse

from proxy.web.clients import Clients
from proxy.web.connection import KEEPALIVE_SECONDS, Answers, Connection
from proxy.web.forwarded import TrustedProxies
from proxy.web.request import Requests

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


class RegistryServer(Server):
    """Makes connections for ``ServerRunner``."""

    def __init__(
        self,
        registry: Handler,
        admin: Handler,
        answers: Answers,
        *,
        clients: Clients,
        trusted: TrustedProxies,
    ) -> None:
        async def dispatch(request: BaseRequest) -> StreamResponse:
            path = request.rel_url.raw_path
            if path.startswith("/-/") or path in ("/", "/metrics"):
                return await admin(request)
            return await registry(request)

        super().__init__(
            dispatch,
            request_factory=Requests(trusted),
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
        )
        self._answers = answers
        self._clients = clients

    @property
    def responses(self) -> int:
        """How many requests are being answered now."""
        return sum(
            isinstance(connection, Connection) and connection.is_answering
            for connection in self.connections
        )

    def __call__(self) -> RequestHandler:
        """Return the protocol of one new connection."""
        return Connection(
            self, loop=self._loop, answers=self._answers, clients=self._clients, **self._kwargs
        )
