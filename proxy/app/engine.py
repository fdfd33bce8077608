"""Builds everything below HTTP: storage, upstreams, and the read-through cache over them."""

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from proxy.access.identity import Identifier
from proxy.access.rules import AccessRules
from proxy.app import bucket as buckets
from proxy.app import cache as caching
from proxy.app import content_events, facts, tracing
from proxy.app import fleet as fleets
from proxy.app import storage as storages
from proxy.app.fleet import Fleet
from proxy.app.storage import Storage
from proxy.app.upstreams import UpstreamExtras, Upstreams
from proxy.content.downloads import Downloads
from proxy.core.records import Clock
from proxy.core.routing import Router
from proxy.fleet.recency import SharedRecency
from proxy.fleet.store import Store
from proxy.repository import Cache
from proxy.repository.confirmations import Confirmations
from proxy.repository.origins import Origins, SharedSources
from proxy.runtime.events import Events
from proxy.runtime.metrics import Metrics
from proxy.runtime.spans import Tracer
from proxy.runtime.supervisor import Supervisor
from proxy.settings import Settings
from proxy.upstream.guard import SYSTEM_NETWORK, Network


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of the proxy: the source of its settings, and the parts that tests replace.

    Tests replace the clock (Unix seconds), name resolution, identity, and access rules;
    ``identifier`` and ``rules`` None: those of the settings. ``load`` reads the settings again and
    raises ``ConfigError``; None: they come from no file.
    """

    clock: Clock = time.time
    network: Network = SYSTEM_NETWORK
    identifier: Identifier | None = None
    rules: AccessRules | None = None
    load: Callable[[], Settings] | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """The cache and everything below it."""

    metrics: Metrics
    events: Events
    router: Router
    storage: Storage
    upstreams: Upstreams
    origins: Origins
    downloads: Downloads
    cache: Cache
    confirmations: Confirmations
    background: Supervisor
    tracer: Tracer
    fleet: Fleet | None
    """None: this replica is alone."""


async def open_engine(
    stack: AsyncExitStack,
    settings: Settings,
    environment: Environment,
    max_downloads: int,
    listens_at: str | None,
) -> Engine:
    """Open the storage and connect the rest to it; ``stack`` closes everything.

    ``max_downloads`` is per upstream, and caps what its settings say. ``listens_at`` is HOST:PORT,
    None without clients. Raises ``ConfigError``.
    """
    metrics, router = Metrics(settings.upstreams), Router(settings)
    events, tracer = Events(environment.clock), tracing.open_tracer(stack, settings.tracing)
    storage = await storages.open_storage(stack, settings, router, metrics, environment.clock)
    content_events.connect(events, storage.content)
    stack.push_async_callback(storage.layout.publish_if_changed)
    background = Supervisor(metrics.tasks, metrics.readiness)
    stack.push_async_callback(background.close)
    store = None if listens_at is None else fleets.open_store(stack, settings, metrics)
    storage = await _with_bucket(stack, settings, storage, store, background)
    downloads = Downloads(storage.content, settings.storage.min_complete_ratio)
    local = fleets.LocalParts(storage.content, downloads, storage.bucket, listens_at)
    fleet = await fleets.open_fleet(stack, settings, store, metrics, local)
    stack.push_async_callback(downloads.close)
    clock, extras = environment.clock, _upstream_extras(storage, fleet, events)
    upstreams = Upstreams(metrics, clock, max_downloads, environment.network, extras)
    stack.push_async_callback(upstreams.close)
    origins = Origins(upstreams.commit(await upstreams.prepare(settings)))
    known = None if fleet is None else facts.SharedFacts(fleet, storage, origins, upstreams)
    shared = (None, None) if known is None else (known.tags, known.names)
    below = caching.LowerLayers(storage, downloads, origins, *shared)
    cache = await caching.build_cache(stack, settings, below)
    if known is not None:
        known.share_small(cache.manifests, downloads)
        known.start(stack, metrics)
    confirmations = Confirmations(origins, metrics.of, clock, settings.timeouts.check)
    stack.push_async_callback(confirmations.close)
    return Engine(
        metrics,
        events,
        router,
        storage,
        upstreams,
        origins,
        downloads,
        cache,
        confirmations,
        background,
        tracer,
        fleet,
    )


async def _with_bucket(
    stack: AsyncExitStack,
    settings: Settings,
    storage: Storage,
    store: Store | None,
    background: Supervisor,
) -> Storage:
    """Return the storage with its second tier, if one is configured."""
    if (configured := settings.storage.bucket) is None:
        return storage
    recency = None if store is None else SharedRecency(store)
    if recency is not None:
        storage.index.uses.on_used = recency.touch_all
        background.start("bucket uses", recency.run)
    smallest = fleets.smallest_object(settings, configured)
    tier = await buckets.open_bucket(stack, configured, storage, recency, smallest)
    return replace(storage, bucket=tier)


def _upstream_extras(storage: Storage, fleet: Fleet | None, events: Events) -> UpstreamExtras:
    """Return what upstreams use besides their registries."""
    bucket = None if storage.bucket is None else storage.bucket.source
    exchange = None if fleet is None else fleet.exchange
    if exchange is None:
        return UpstreamExtras(SharedSources(bucket, None), None, events)
    return UpstreamExtras(SharedSources(bucket, exchange.peers), exchange.tokens, events)
