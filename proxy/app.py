"""Builds and wires everything, and owns every lifetime: what opens last closes first."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp.web import ServerRunner, SockSite
from yarl import URL

from proxy import VERSION
from proxy.cache import Cache
from proxy.cache.ahead import Ahead, Bounds
from proxy.cache.blobs import Blobs
from proxy.cache.expected import Expected
from proxy.cache.holdings import Holdings
from proxy.cache.listings import Listings
from proxy.cache.manifests import Manifests
from proxy.cache.referrers import ReferrersCache
from proxy.cache.sources import Source
from proxy.cache.tags import Tags
from proxy.errors import ConfigError, StorageError
from proxy.evict import Evictor
from proxy.flights import Flights
from proxy.index import Index
from proxy.index.local import LocalIndex
from proxy.logs import RequestLog
from proxy.metrics import CacheCounters, Metrics
from proxy.policy import Rule
from proxy.records import Clock
from proxy.repair import reconcile
from proxy.routing import Router
from proxy.settings import Settings, UpstreamTLS
from proxy.settings import Upstream as UpstreamSettings
from proxy.store import BlobStore
from proxy.store.disk import DiskStore
from proxy.upstream.auth import Authorizer
from proxy.upstream.budget import Budget
from proxy.upstream.client import Client
from proxy.upstream.download import Terms
from proxy.upstream.guard import Guard
from proxy.upstream.patience import Limits, Patience
from proxy.upstream.providers import Anonymous, Credentials, PasswordFile, Provider, Static
from proxy.upstream.registry import Upstream
from proxy.upstream.spans import Pieces
from proxy.upstream.transport import Transport, Trust, client_context
from proxy.web.admin import Admin
from proxy.web.certificate import Certificate
from proxy.web.registry import Registry
from proxy.web.server import RegistryServer

BACKLOG: Final = 1024

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class App:
    """A running proxy: where it listens, its numbers, and its durable facts."""

    address: str
    admin: Admin
    index: Index


class Background:
    """Owns the tasks that run beside the requests."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until it ends or ``close``."""
        self._tasks.append(asyncio.create_task(self._watched(name, work), name=name))

    async def close(self) -> None:
        """Cancel everything and wait for its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watched(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("background work failed", work=name)


@asynccontextmanager
async def running(
    settings: Settings,
    make_request_log: Callable[[CacheCounters], RequestLog],
    clock: Clock = time.time,
) -> AsyncIterator[App]:
    """Run the proxy while the context is open; leaving it stops gracefully.

    Needs no network. Raises ``ConfigError`` when a setting cannot be put into practice.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics(list(settings.upstreams))
        certificate = Certificate(settings.tls) if settings.tls else None
        listener = stack.enter_context(_listener(settings))
        store = DiskStore(settings.storage.path)
        stack.callback(store.close)
        index = await stack.enter_async_context(
            LocalIndex(
                settings.storage.path / "index",
                clock=clock,
                on_trouble=metrics.cache.storage_trouble,
            )
        )
        background = Background()
        stack.push_async_callback(background.close)
        request_log = make_request_log(metrics.cache)

        flights = Flights(settings.storage.finish_from)
        stack.push_async_callback(flights.close)
        evictor = Evictor(index, store, int(settings.storage.max_size), metrics.cache)
        holdings = Holdings(store, index, evictor, metrics.cache, clock)
        sources = _Sources(stack, settings, metrics, clock).build()
        ram_bytes = int(settings.memory.manifests)
        manifests = Manifests(holdings, sources, clock=clock, ram_bytes=ram_bytes)
        stack.push_async_callback(manifests.close)
        check = settings.timeouts.check
        tags = Tags(manifests, index, sources, clock=clock, patience=check)
        stack.push_async_callback(tags.close)
        expected = Expected(metrics.cache)
        sizes = manifests.sizes
        blobs = Blobs(holdings, sources, flights=flights, sizes=sizes, expected=expected)
        stack.push_async_callback(blobs.close)
        bounds = Bounds(**settings.prefetch.model_dump())
        ahead = Ahead(blobs, sources, flights=flights, expected=expected, bounds=bounds)
        stack.push_async_callback(ahead.close)
        listings = Listings(index, sources, has_catalog=settings.catalog)
        referrers = ReferrersCache(manifests, index, sources, clock=clock)
        stack.push_async_callback(referrers.close)
        registry = Registry(
            Router(settings),
            Cache(manifests, tags, blobs, listings, referrers, ahead),
            metrics=metrics,
            request_log=request_log,
        )
        budgets = {name: source.upstream.budget for name, source in sources.items()}
        admin = Admin(metrics, index, evictor, flights=flights, budgets=budgets)
        background.start("request log", request_log.write_for_ever())
        background.start("reconcile", _reconcile(store, index, evictor))
        runner = ServerRunner(
            RegistryServer(registry.handle, admin.handle), shutdown_timeout=settings.shutdown_grace
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        if certificate is not None:
            background.start("certificate", certificate.watch())
        context = certificate.context if certificate is not None else None
        await SockSite(runner, listener, ssl_context=context, backlog=BACKLOG).start()
        yield App(_address(listener), admin, index)
        admin.is_stopping = True


class _Sources:
    """Builds the configured upstreams, whose connections ``stack`` closes."""

    def __init__(
        self, stack: AsyncExitStack, settings: Settings, metrics: Metrics, clock: Clock
    ) -> None:
        self._stack = stack
        self._settings = settings
        self._metrics = metrics
        self._clock = clock

    def build(self) -> dict[str, Source]:
        """Return every upstream with its rule. Raises ``ConfigError``."""
        usual = UpstreamTLS()
        shared = client_context("", usual)  # reading the system's authorities takes tens of ms
        sources = {}
        for name, upstream in self._settings.upstreams.items():
            context = shared if upstream.tls == usual else client_context(name, upstream.tls)
            sources[name] = Source(self._upstream(name, context), self._rule(name))
        return sources

    def _upstream(self, name: str, context: ssl.SSLContext) -> Upstream:
        configured, patience = self._settings.upstreams[name], self._settings.patience
        url = URL(configured.url)
        transport = Transport(
            name,
            trust=Trust(context, Guard(url.host or "", configured.auth_hosts)),
            timeouts=self._settings.timeouts,
            counters=self._metrics.of(name),
            user_agent=f"millpond/{VERSION}",
        )
        self._stack.push_async_callback(transport.close)
        provider, hosts = _provider(configured), configured.auth_hosts
        authorizer = Authorizer(url, provider, hosts, transport.fetch_token)
        self._stack.push_async_callback(authorizer.close)
        limits = Limits(patience.retries, patience.failures, patience.pause, patience.cool_down)
        client = Client(
            url,
            transport,
            authorizer=authorizer,
            patience=Patience(name, limits, time.monotonic),
            answer=self._settings.timeouts.answer,
        )
        budget, downloads = Budget(self._clock), configured.max_downloads
        parallel = self._settings.parallel
        pieces = Pieces(parallel.connections, int(parallel.start_from))
        terms = Terms(patience.resumes, pieces)
        return Upstream(client, budget, terms=terms, downloads=downloads)

    def _rule(self, name: str) -> Rule:
        fresh = self._settings.freshness_of(name).model_dump()
        keep_deleted = fresh.pop("deleted_tags")
        return Rule(keep_deleted=keep_deleted, offline=self._settings.offline, **fresh)


def _provider(configured: UpstreamSettings) -> Provider:
    if configured.username is None:
        return Anonymous()
    if configured.password_file is not None:
        return PasswordFile(configured.username, configured.password_file)
    assert configured.password is not None
    return Static(Credentials(configured.username, configured.password.get_secret_value()))


async def _reconcile(store: BlobStore, index: Index, evictor: Evictor) -> None:
    try:
        await evictor.enforce()
        await reconcile(store, index)
        await evictor.enforce()
    except StorageError as error:
        log.warning("reconciling store and index failed", error=str(error))


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=settings.host == "::",
        )
    except OSError as error:
        raise ConfigError(
            f"listen: {settings.listen} cannot be listened on: {error.strerror or error}; "
            "choose another address with --listen HOST:PORT"
        ) from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
