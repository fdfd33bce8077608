"""Builds what answers HTTP, and starts the servers: for clients on TCP, and on the admin socket."""

import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ssl import SSLContext
from typing import Final

from aiohttp.web import ServerRunner

from proxy.access import AccessRules, AdminAccess
from proxy.app.engine import Engine
from proxy.policies import Policies
from proxy.policies.rules import compiled
from proxy.repository.memory_lookup import MemoryLookup
from proxy.runtime.logs import RequestLog
from proxy.services.drop import Dropper
from proxy.services.pull import Puller
from proxy.services.verify import Verifier
from proxy.settings import Settings
from proxy.web.acceptor import Acceptor
from proxy.web.admin.actions import Control, Services
from proxy.web.admin.pages import Admin
from proxy.web.clients import Clients
from proxy.web.exchange import Journal
from proxy.web.forwarded import TrustedProxies
from proxy.web.registry import Registry
from proxy.web.response_cache import Guards, ResponseCache
from proxy.web.server import Handler, RegistryServer

ADMIN_CLIENTS: Final = 16


@dataclass(frozen=True, slots=True)
class Handlers:
    """What answers requests, and the services that operators start."""

    registry: Registry
    admin: Admin
    responses: ResponseCache
    services: Services
    admin_access: AdminAccess
    trusted: TrustedProxies
    policies: Policies


def handlers(
    engine: Engine, settings: Settings, access: AccessRules, request_log: RequestLog
) -> Handlers:
    """Return everything that answers requests to ``engine``."""
    cache, storage, router = engine.cache, engine.storage, engine.router
    content, upstreams = storage.content, engine.upstreams
    lookup = MemoryLookup(content, cache.manifests, cache.tags, cache.small)
    trusted = TrustedProxies(settings.trusted_proxies)
    journal = Journal(engine.metrics, request_log, upstreams.current)
    policies = Policies(cache, content, engine.metrics)
    policies.use(compiled(settings.policies))
    guards = Guards(access, policies)
    responses = ResponseCache(lookup, guards, journal, trusted)
    services = Services(
        content,
        storage.pins,
        storage.feeds,
        verifier=Verifier(content, cache.fetch, storage.clock, storage.pins.roots),
        dropper=Dropper(content, storage.pins, storage.layout, cache.manifests.forget),
        puller=Puller(cache, content, engine.origins, engine.downloads),
        cache=cache,
        image=router.parse_image,
        selector=router.parse_selector,
    )
    admin_access = AdminAccess(access, settings.admin.token_file)
    admin = Admin(
        engine.metrics,
        content,
        downloads=engine.downloads,
        upstreams=upstreams.current,
        control=Control(services, admin_access),
    )
    registry = Registry(router, cache, guards=guards, journal=journal, responses=responses)
    return Handlers(registry, admin, responses, services, admin_access, trusted, policies)


class Servers:
    """The running servers; ``stack`` stops them and gives running responses ``grace`` seconds."""

    def __init__(
        self, stack: AsyncExitStack, engine: Engine, parts: Handlers, *, grace: float
    ) -> None:
        self._stack = stack
        self._counters = engine.metrics.cache
        self._parts = parts
        self._grace = grace
        self._servers: list[RegistryServer] = []

    @property
    def responses(self) -> int:
        """Number of responses in progress."""
        return sum(server.responses for server in self._servers)

    async def serve_operator(self, listener: socket.socket) -> None:
        """Accept connections on the admin socket."""
        clients = Clients(self._counters)
        server = self._server(self._parts.admin.handle_trusted, clients)
        await self._start(server, Acceptor(listener, server, clients, limit=ADMIN_CLIENTS))

    async def serve_clients(
        self,
        listener: socket.socket,
        context: SSLContext | None,
        *,
        limit: int,
        send_timeout: float,
    ) -> Clients:
        """Accept at most ``limit`` connections at a time; return the connected clients.

        A client may stop reading for ``send_timeout`` seconds. ``context`` None: plain HTTP.
        """
        clients = Clients(self._counters, send_timeout)
        server = self._server(self._parts.admin.handle, clients)
        acceptor = Acceptor(listener, server, clients, limit=limit, context=context)
        await self._start(server, acceptor)
        return clients

    def _server(self, admin: Handler, clients: Clients) -> RegistryServer:
        parts = self._parts
        return RegistryServer(
            parts.registry.handle,
            admin,
            parts.responses.get,
            clients=clients,
            trusted=parts.trusted,
        )

    async def _start(self, server: RegistryServer, acceptor: Acceptor) -> None:
        runner = ServerRunner(server, shutdown_timeout=self._grace)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        acceptor.start()
        self._stack.push_async_callback(acceptor.close)
        self._servers.append(server)
