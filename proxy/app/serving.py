"""Builds the HTTP handlers, and starts the servers: for clients on TCP, and on the admin socket."""

import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ssl import SSLContext
from typing import Final

from aiohttp.web import BaseRequest, ServerRunner, StreamResponse

from proxy import VERSION
from proxy.access.audit_log import Audit
from proxy.access.callers import Callers
from proxy.access.control import AccessControl, Policy
from proxy.access.identity import AnonymousIdentifier, Certificate
from proxy.access.limits import ClientLimits
from proxy.access.operator import AdminAccess
from proxy.app import api
from proxy.app.api import OperatorApi
from proxy.app.engine import Engine, Environment
from proxy.app.identity import Identity
from proxy.app.image_updates import ImageUpdates, parse_plan
from proxy.app.workers.internal import InternalServer
from proxy.index.outbox import Outbox
from proxy.policies import Policies
from proxy.policies.rules import compile_rules
from proxy.repository.memory_lookup import MemoryLookup
from proxy.runtime.logs import RequestLog
from proxy.services.drop import Dropper
from proxy.services.expansion import Expansion
from proxy.services.export import Exporter
from proxy.services.importing import Importer
from proxy.services.notifications import Notifications
from proxy.services.pull import Puller
from proxy.services.verify import Verifier
from proxy.settings import Settings
from proxy.web.acceptor import Acceptor
from proxy.web.admin import hooks
from proxy.web.admin.actions import AdminActions, Services
from proxy.web.admin.api.guard import Guard
from proxy.web.admin.api.process import Process
from proxy.web.admin.bundles import Bundles
from proxy.web.admin.pages import Admin
from proxy.web.admin.sites import Sites
from proxy.web.admin.statistics import Statistics
from proxy.web.announcer import Announcer
from proxy.web.callers import CallerGate
from proxy.web.clients import Clients
from proxy.web.exchange import RequestRecorder, Watchers
from proxy.web.fleet import PeerServer, Served
from proxy.web.forwarded import TrustedProxies
from proxy.web.gate import TOKEN_PATH, Gate, Guards
from proxy.web.registry import Registry
from proxy.web.response_cache import ResponseCache
from proxy.web.server import RegistryServer

ADMIN_CLIENTS: Final = 16


@dataclass(frozen=True, slots=True)
class Handlers:
    """The handlers of requests, and the services that operators start."""

    registry: Registry
    admin: Admin
    operator_api: OperatorApi
    responses: ResponseCache
    services: Services
    image_updates: ImageUpdates
    guards: Guards
    identity: Identity | None
    """None: something else identifies clients, in tests."""
    admin_access: AdminAccess
    trusted: TrustedProxies
    audit: Audit
    peers: PeerServer | None
    """None: replicas exchange no content."""
    notifications: Notifications

    def stop(self) -> None:
        """Stop work that would delay the exit: verification, pulls and streams."""
        self.services.verifier.stop()
        self.services.puller.stop()
        self.operator_api.streams.close()

    async def handle_own(self, request: BaseRequest) -> StreamResponse:
        """Answer a request over TCP that is not for the registry."""
        identity = self.identity
        if request.rel_url.raw_path == TOKEN_PATH and identity is not None:
            return await identity.handle_token(request)
        if request.rel_url.raw_path.startswith(hooks.PATH):
            return await self.image_updates.hooks.handle(request)
        peers = self.peers
        if peers is not None and peers.admits(request):
            return await peers.handle(request)
        return await self.admin.handle(request)


def handlers(
    engine: Engine,
    settings: Settings,
    environment: Environment,
    request_log: RequestLog,
    audit: Audit,
) -> Handlers:
    """Return the handlers of requests to ``engine``. Raises ``ConfigError``."""
    cache, content, router = engine.cache, engine.storage.content, engine.router
    upstreams = engine.upstreams.current
    trusted = TrustedProxies(settings.access.trusted_proxies)
    access = access_control(engine, settings, environment)
    limits = ClientLimits(settings.access, engine.metrics.limits)
    policies = Policies(cache, content, engine.metrics)
    policies.use(compile_rules(settings.policies, router.parse_selector))
    callers = Callers()
    guards = Guards(access, limits, policies, CallerGate(callers, engine.confirmations, router))
    watchers = Watchers(Announcer(engine.events), engine.tracer)
    recorder = RequestRecorder(engine.metrics, request_log, audit, upstreams, watchers)
    lookup = MemoryLookup(content, cache.manifests, cache.tags, cache.small)
    responses = ResponseCache(lookup, guards, recorder, trusted, router.resolve)
    services = _services(engine, settings, guards)
    image_updates = ImageUpdates(engine, services.puller, services.expansion, audit)
    image_updates.use(parse_plan(settings, router))
    admin_access = AdminAccess(access, settings.admin.token_file)
    pins = engine.storage.pins
    statistics = Statistics(engine.metrics, content, engine.downloads, upstreams, pins, limits)
    guard, process = Guard(admin_access, audit, trusted), Process(settings, environment.load)
    operator_api = api.build_api(engine, statistics, services, guard, process)
    actions, sites = AdminActions(services, admin_access, audit), Sites(settings, trusted)
    is_ours = environment.identifier is None
    gate = Gate(guards, router, trusted)
    return Handlers(
        Registry(router, cache, gate=gate, recorder=recorder, responses=responses),
        Admin(statistics, actions, operator_api.api, sites),
        operator_api,
        responses,
        services,
        image_updates,
        guards,
        Identity(guards, callers, router, settings.storage.path, audit) if is_ours else None,
        admin_access,
        trusted,
        audit,
        _peer_server(engine),
        _notifications(engine, settings),
    )


def _services(engine: Engine, settings: Settings, guards: Guards) -> Services:
    """Return what commands work on."""
    cache, storage, router = engine.cache, engine.storage, engine.router
    content, pins = storage.content, storage.pins
    source, creator = f"{socket.gethostname()}:{settings.port}", f"millpond {VERSION}"
    exporter = Exporter(content, cache.tags.cool_downs, pins, source=source, creator=creator)
    importer = Importer(content, pins, engine.origins)
    return Services(
        content,
        pins,
        storage.feeds,
        verifier=Verifier(content, cache.fetch, storage.clock, pins.roots),
        dropper=Dropper(content, pins, storage.layout, cache.manifests.forget),
        puller=Puller(cache, content, engine.origins, engine.downloads),
        expansion=Expansion(content, engine.origins, cache.listings),
        bundles=Bundles(content, exporter, importer, router),
        cache=cache,
        guards=guards,
        upstreams=engine.upstreams.current,
        image=router.parse_image,
        selector=router.parse_selector,
        replicas=dict if engine.fleet is None else engine.fleet.replicas.all,
        bucket=None if storage.bucket is None else storage.bucket.evictor,
    )


def _peer_server(engine: Engine) -> PeerServer | None:
    exchange = None if engine.fleet is None else engine.fleet.exchange
    if exchange is None:
        return None
    served = Served(
        engine.storage.content, engine.downloads, engine.cache.manifests, engine.cache.blobs
    )
    return PeerServer(exchange.signer, exchange.leases, served, engine.metrics.fleet)


def _notifications(engine: Engine, settings: Settings) -> Notifications:
    outbox = Outbox(engine.storage.directory.root / "index" / "outbox.db")
    source = f"millpond://{socket.gethostname()}:{settings.port}"
    return Notifications(engine.events, outbox, engine.metrics, source)


def access_control(engine: Engine, settings: Settings, environment: Environment) -> AccessControl:
    """Return the access control of the settings. Raises ``ConfigError``."""
    policy = Policy.of(settings.access, engine.router.parse_selector)
    if environment.rules is not None:
        policy = replace(policy, rules=environment.rules)
    return AccessControl(
        policy, environment.identifier or AnonymousIdentifier(), engine.metrics.cache
    )


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
        parts = self._parts
        server = RegistryServer(
            parts.registry.handle_trusted,
            parts.admin.handle_trusted,
            _never_cached,
            clients=clients,
            trusted=parts.trusted,
        )
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
        parts = self._parts
        server = RegistryServer(
            parts.registry.handle,
            parts.handle_own,
            parts.responses.get,
            clients=clients,
            trusted=parts.trusted,
        )
        acceptor = Acceptor(listener, server, clients, limit=limit, context=context)
        await self._start(server, acceptor)
        return clients

    async def serve_workers(self, listener: socket.socket, *, limit: int) -> None:
        """Accept connections of workers, which relay requests of clients."""
        clients = Clients(self._counters)
        parts = self._parts
        server = InternalServer(parts.registry.handle, parts.handle_own, clients, parts.trusted)
        await self._start(server, Acceptor(listener, server, clients, limit=limit))

    async def _start(self, server: RegistryServer, acceptor: Acceptor) -> None:
        runner = ServerRunner(server, shutdown_timeout=self._grace)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        acceptor.start()
        self._stack.push_async_callback(acceptor.close)
        self._servers.append(server)


def _never_cached(head: bytes, client: str | None, certificate: Certificate | None) -> None:
    """Never cache a request: the general path has to identify the operator."""
    del head, client, certificate
