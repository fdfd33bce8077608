"""Builds and wires everything, and owns every lifetime: what opens last closes first."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from socket import socket
from ssl import SSLContext
from typing import Final

import structlog
from aiohttp.web import ServerRunner, SockSite

from proxy.app import listening, storage
from proxy.app.background import Background
from proxy.app.upstreams import Sources
from proxy.cache import Cache
from proxy.cache.ahead import Ahead, Bounds
from proxy.cache.at_hand import AtHand
from proxy.cache.blobs import Blobs
from proxy.cache.expected import Expected
from proxy.cache.holdings import Holdings
from proxy.cache.listings import Listings
from proxy.cache.manifests import Manifests
from proxy.cache.referrers import ReferrersCache
from proxy.cache.small import SmallBlobs
from proxy.cache.sources import Source
from proxy.cache.tags import Tags
from proxy.errors import StorageError
from proxy.flights import Flights
from proxy.index import Index
from proxy.logs import RequestLog
from proxy.metrics import CacheCounters, Metrics
from proxy.records import Clock
from proxy.repair import prune, reconcile
from proxy.routing import Router
from proxy.settings import Settings
from proxy.verify import Verifier
from proxy.web import lag
from proxy.web.admin import Admin
from proxy.web.certificate import Certificate
from proxy.web.control import Control, Token
from proxy.web.prepared import Prepared
from proxy.web.registry import Registry
from proxy.web.server import RegistryServer

SETTLED_SECONDS: Final = 600.0
DAY_SECONDS: Final = 86400.0
RETRY_FIRST: Final = 1.0
RETRY_SECONDS: Final = 30.0
"""After a failure the store is looked through again: so much later at first, and at most."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class App:
    """A running proxy: where it listens (None: nowhere), its numbers, and its durable facts."""

    address: str | None
    admin: Admin
    index: Index


@asynccontextmanager
async def running(
    settings: Settings,
    make_request_log: Callable[[CacheCounters], RequestLog],
    clock: Clock = time.time,
    *,
    is_public: bool = True,
) -> AsyncIterator[App]:
    """Run the proxy while the context is open; leaving it stops gracefully.

    Needs no network. ``is_public`` False listens on the admin socket only. Raises ``ConfigError``
    when a setting cannot be put into practice.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics(list(settings.upstreams))
        certificate = Certificate(settings.tls) if settings.tls and is_public else None
        listener = stack.enter_context(listening.public(settings)) if is_public else None
        router = Router(settings)
        kept = await storage.opened(stack, settings, router, metrics.cache, clock)
        stack.push_async_callback(kept.layout.keep)
        background = Background()
        stack.push_async_callback(background.close)
        request_log = make_request_log(metrics.cache)

        flights = Flights(settings.storage.finish_from)
        stack.push_async_callback(flights.close)
        sources = Sources(stack, settings, metrics, clock).build()
        cache = _cache(stack, settings, kept, flights, sources)
        verifier = Verifier(kept.holdings, cache.fetch, clock)
        at_hand = AtHand(kept.index, cache.manifests, cache.tags, cache.small)
        prepared = Prepared(at_hand, metrics=metrics, request_log=request_log)
        registry = Registry(
            router, cache, metrics=metrics, request_log=request_log, learn=prepared.learn
        )
        token = Token(settings.admin.token_file)
        admin = Admin(
            metrics,
            kept.holdings,
            flights=flights,
            budgets={name: source.upstream.budget for name, source in sources.items()},
            control=Control(kept.holdings, kept.pins, kept.feeds, verifier, token),
        )
        background.start("request log", request_log.write_for_ever())
        background.start("loop lag", lag.watch(metrics))
        background.start("reconcile", _agree(kept))
        background.start("eviction", kept.evictor.watch(clock))
        background.start("names", kept.layout.publish_for_ever())
        background.start("feeds", kept.feeds.watch())
        if is_public and settings.storage.scrub_every < float("inf"):
            every, rate = settings.storage.scrub_every, settings.storage.scrub_rate
            background.start("scrub", verifier.scrub(every, rate))
        if settings.admin.socket:
            own = stack.enter_context(listening.admin(kept.directory))
            server = RegistryServer(registry.handle, admin.handle_trusted, prepared.answer)
            await _serve(stack, server, own, grace=settings.shutdown_grace)
        if listener is not None:
            server = RegistryServer(registry.handle, admin.handle, prepared.answer)
            if certificate is not None:
                background.start("certificate", certificate.watch())
            context = certificate.context if certificate is not None else None
            await _serve(stack, server, listener, context, grace=settings.shutdown_grace)
        address = None if listener is None else listening.address(listener)
        yield App(address, admin, kept.index)
        admin.is_stopping = True


def _cache(
    stack: AsyncExitStack,
    settings: Settings,
    kept: storage.Storage,
    flights: Flights,
    sources: Mapping[str, Source],
) -> Cache:
    holdings, index, clock = kept.holdings, kept.index, kept.holdings.clock
    ram_bytes = int(settings.memory.manifests)
    manifests = Manifests(holdings, sources, clock=clock, ram_bytes=ram_bytes)
    stack.push_async_callback(manifests.close)
    tags = Tags(manifests, index, sources, clock=clock, patience=settings.timeouts.check)
    stack.push_async_callback(tags.close)
    expected = Expected(holdings.counters)
    sizes = manifests.sizes
    blobs = Blobs(holdings, sources, flights=flights, sizes=sizes, expected=expected)
    stack.push_async_callback(blobs.close)
    bounds = Bounds(**settings.prefetch.model_dump())
    ahead = Ahead(blobs, sources, flights=flights, expected=expected, bounds=bounds)
    stack.push_async_callback(ahead.close)
    memory = settings.memory
    small = SmallBlobs(
        blobs, holdings, ram_bytes=int(memory.blobs), largest=int(memory.largest_blob)
    )
    listings = Listings(index, sources, has_catalog=settings.catalog)
    referrers = ReferrersCache(manifests, index, sources, clock=clock)
    stack.push_async_callback(referrers.close)
    return Cache(manifests, tags, blobs, small, listings, referrers, ahead)


async def _serve(
    stack: AsyncExitStack,
    server: RegistryServer,
    listener: socket,
    context: SSLContext | None = None,
    *,
    grace: float,
) -> None:
    runner = ServerRunner(server, shutdown_timeout=grace)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await SockSite(runner, listener, ssl_context=context, backlog=listening.BACKLOG).start()


async def _agree(kept: storage.Storage) -> None:
    """Bring everything that lies here into agreement, now and every day."""
    await kept.layout.recall()
    await _reconcile(kept.holdings)
    await asyncio.sleep(SETTLED_SECONDS)
    while True:
        await prune(kept.holdings)
        await asyncio.sleep(DAY_SECONDS)
        await _reconcile(kept.holdings)


async def _reconcile(holdings: Holdings) -> None:
    """Reconcile, again and again until the disk lets it be done."""
    pause = RETRY_FIRST
    while True:
        try:
            return await reconcile(holdings)
        except StorageError as error:
            holdings.evictor.not_found(str(error))
            log.warning("store and index do not agree yet", error=str(error), again_in=pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_SECONDS)
