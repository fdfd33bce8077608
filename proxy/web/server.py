"""aiohttp's server: makes connections and requests, and dispatches by path."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp.web import BaseRequest, Request, RequestHandler, Server, StreamResponse

from proxy.web.clients import Clients
from proxy.web.connection import KEEPALIVE_SECONDS, Connection, Lookup
from proxy.web.forwarded import TrustedProxies

if TYPE_CHECKING:
    import asyncio

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import RawRequestMessage
    from aiohttp.streams import StreamReader

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


class RegistryServer(Server):
    """Makes connections; ``lookup`` answers from the response cache, handlers all other requests.

    ``admin`` handles ``/``, ``/metrics``, ``/-`` and ``/-/``, ``registry`` everything else.
    """

    def __init__(
        self,
        registry: Handler,
        admin: Handler,
        lookup: Lookup,
        *,
        clients: Clients,
        trusted: TrustedProxies,
    ) -> None:
        async def dispatch(request: BaseRequest) -> StreamResponse:
            path = request.rel_url.raw_path
            if path.startswith("/-/") or path in ("/", "/-", "/metrics"):
                return await admin(request)
            return await registry(request)

        super().__init__(
            dispatch,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
        )
        self._lookup = lookup
        self._clients = clients
        self._trusted = trusted

    @property
    def responses(self) -> int:
        """Number of requests in progress."""
        return sum(
            isinstance(connection, Connection) and connection.is_answering
            for connection in self.connections
        )

    def __call__(self) -> RequestHandler:
        """Return the protocol of one new connection."""
        return Connection(
            self, loop=self._loop, lookup=self._lookup, clients=self._clients, **self._kwargs
        )

    def _request(
        self,
        message: "RawRequestMessage",
        payload: "StreamReader",
        protocol: RequestHandler,
        writer: "AbstractStreamWriter",
        task: "asyncio.Task[None]",
    ) -> BaseRequest:
        """Return a request; ``remote`` is the client named by a trusted proxy, or the peer."""
        peer = protocol.peername
        address = str(peer[0]) if isinstance(peer, (list, tuple)) and peer else None
        remote = None if address is None else self._trusted.client(address, message.headers)
        return _Request(message, payload, protocol, writer, task, self._loop, remote=remote)


class _Request(Request):
    """A request whose response names this server, even if aiohttp made the response.

    It is one that an ``Application`` can handle: the Admin API is one.
    """

    async def _prepare_hook(self, response: StreamResponse) -> None:
        response.headers["Server"] = "millpond"  # replaces aiohttp's own name
