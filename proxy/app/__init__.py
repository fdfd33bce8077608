"""Builds and wires everything, and owns every lifetime: what opens last closes first."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.app import cache as caching
from proxy.app import listening, reload, serving, storage
from proxy.app.descriptors import raise_limit, shared_out
from proxy.app.upstreams import Upstreams
from proxy.content.content import Content
from proxy.content.downloads import Downloads
from proxy.core.errors import StorageError
from proxy.core.records import Clock
from proxy.core.routing import Router
from proxy.index import Index
from proxy.repository import Cache
from proxy.repository.memory_lookup import MemoryLookup
from proxy.repository.origins import Origins
from proxy.runtime import loop_monitor
from proxy.runtime.logs import RequestLog
from proxy.runtime.metrics import CacheCounters, Metrics
from proxy.runtime.supervisor import Supervisor
from proxy.services.drop import Dropper
from proxy.services.pull import Puller
from proxy.services.reconcile import presume, prune, reconcile
from proxy.services.verify import Verifier
from proxy.settings import Settings
from proxy.upstream.guard import SYSTEM_NETWORK, Network
from proxy.web.admin.actions import Control, Token
from proxy.web.admin.images import Services
from proxy.web.admin.pages import Admin
from proxy.web.certificate import Certificate
from proxy.web.endings import Endings
from proxy.web.forwarded import TrustedProxies
from proxy.web.registry import Registry
from proxy.web.response_cache import ResponseCache

SETTLED_SECONDS: Final = 600.0
DAY_SECONDS: Final = 86400.0
RETRY_FIRST: Final = 1.0
RETRY_SECONDS: Final = 30.0
"""After a failure the store is looked through again: so much later at first, and at most."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class App:
    """A running proxy: where it listens (None: nowhere), its numbers, and its durable facts.

    ``reload`` puts other settings in force and returns those in force then; raises ``ConfigError``
    and changes nothing. ``responses`` counts the responses in progress.
    """

    address: str | None
    admin: Admin
    index: Index
    reload: Callable[[Settings], Awaitable[Settings]]
    responses: Callable[[], int]


@asynccontextmanager
async def running(
    settings: Settings,
    make_request_log: Callable[[CacheCounters], RequestLog],
    clock: Clock = time.time,
    *,
    is_public: bool = True,
    network: Network = SYSTEM_NETWORK,
) -> AsyncIterator[App]:
    """Run the proxy while the context is open; leaving it stops gracefully.

    Needs no network. ``is_public`` False listens on the admin socket only. Raises ``ConfigError``
    when a setting cannot be put into practice. ``network`` resolves the names of upstreams.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics(list(settings.upstreams))
        certificate = Certificate(settings.tls) if settings.tls and is_public else None
        listener = stack.enter_context(listening.public(settings)) if is_public else None
        shares = shared_out(raise_limit(), settings.most_downloads)
        router = Router(settings)
        kept = await storage.opened(stack, settings, router, metrics, clock)
        stack.push_async_callback(kept.layout.keep)
        background = Supervisor(metrics.tasks, metrics.readiness)
        stack.push_async_callback(background.close)
        request_log = make_request_log(metrics.cache)

        flights = Downloads(settings.storage.finish_from)
        stack.push_async_callback(flights.close)
        upstreams = Upstreams(metrics, clock, shares.downloads, network)
        stack.push_async_callback(upstreams.close)
        sources = Origins(upstreams.commit(await upstreams.prepare(settings)))
        cache = caching.built(stack, settings, kept, flights, sources)
        at_hand = MemoryLookup(kept.index, cache.manifests, cache.tags, cache.small)
        trusted = TrustedProxies(settings.trusted_proxies)
        prepared = ResponseCache(at_hand, metrics=metrics, request_log=request_log, trusted=trusted)
        at_end = Endings(prepared.learn, upstreams.current)
        registry = Registry(router, cache, metrics=metrics, request_log=request_log, learn=at_end)
        services = _services(kept, cache, router, Puller(cache, sources, flights))
        token = Token(settings.admin.token_file)
        admin = Admin(
            metrics,
            kept.content,
            flights=flights,
            upstreams=upstreams.current,
            control=Control(kept.content, kept.pins, kept.feeds, services, token),
        )
        background.start("request log", request_log.write_for_ever)
        background.start("loop lag", lambda: loop_monitor.watch(metrics))
        _look_after(background, kept, offline=settings.offline)
        background.start("upstreams", upstreams.close_retired)
        parts = serving.Parts(registry, admin, prepared.answer, trusted, metrics.cache)
        servers = serving.Servers(stack, parts, settings.shutdown_grace)
        if settings.admin.socket:
            await servers.serve_operator(stack.enter_context(listening.admin(kept.directory)))
        if listener is not None:
            clients = await servers.serve_clients(
                listener,
                certificate.context if certificate is not None else None,
                limit=shares.clients,
                send_timeout=settings.timeouts.send,
            )
            background.start("stalled clients", clients.watch)
            _scrub(background, services.verifier, settings)
        if certificate is not None:
            background.start("certificate", certificate.watch)
        address = None if listener is None else listening.address(listener)
        applied = reload.Parts(router, upstreams, sources, kept.pins, prepared, certificate, token)
        reloader = reload.Reloader(settings, applied)
        yield App(address, admin, kept.index, reloader.apply, lambda: servers.responses)
        admin.is_stopping = True
        services.verifier.stop()
        services.puller.stop()
        if is_public:
            await asyncio.sleep(settings.shutdown_delay)


def _look_after(background: Supervisor, kept: storage.Storage, *, offline: bool) -> None:
    """Start what keeps the cache's directory in order."""
    clock = kept.content.clock
    background.start_essential("reconcile", lambda: _agree(kept, offline=offline))
    background.start_essential("eviction", lambda: kept.evictor.watch(clock))
    background.start("names", kept.layout.publish_for_ever)
    background.start("feeds", kept.feeds.watch)


def _services(kept: storage.Storage, cache: Cache, router: Router, puller: Puller) -> Services:
    content = kept.content
    return Services(
        verifier=Verifier(content, cache.fetch, content.clock, kept.pins.roots),
        dropper=Dropper(content, kept.pins, kept.layout, cache.manifests.forget),
        puller=puller,
        cache=cache,
        image=router.image,
        selector=router.selector,
    )


def _scrub(background: Supervisor, verifier: Verifier, settings: Settings) -> None:
    every, rate = settings.storage.scrub_every, settings.storage.scrub_rate
    if every < float("inf"):
        background.start("scrub", lambda: verifier.scrub(every, rate))


async def _agree(kept: storage.Storage, *, offline: bool) -> None:
    """Bring everything that lies here into agreement, now and every day."""
    await kept.layout.recall()
    await _reconcile(kept.content)
    if offline:
        await presume(kept.content)
    await asyncio.sleep(SETTLED_SECONDS)
    while True:
        await prune(kept.content)
        await asyncio.sleep(DAY_SECONDS)
        await _reconcile(kept.content)


async def _reconcile(content: Content) -> None:
    """Reconcile, again and again until the disk lets it be done."""
    pause = RETRY_FIRST
    while True:
        try:
            return await reconcile(content)
        except StorageError as error:
            content.evictor.not_found(str(error))
            log.warning("store and index do not agree yet", error=str(error), again_in=pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_SECONDS)
