"""Builds the cache's rooms."""

from collections.abc import Mapping
from contextlib import AsyncExitStack

from proxy.app import storage
from proxy.cache import Cache
from proxy.cache.ahead import Ahead, Bounds
from proxy.cache.blobs import Blobs
from proxy.cache.expected import Expected
from proxy.cache.listings import Listings
from proxy.cache.manifests import Manifests
from proxy.cache.referrers import ReferrersCache
from proxy.cache.small import SmallBlobs
from proxy.cache.sources import Source
from proxy.cache.sweeps import Sweeps
from proxy.cache.tags import Tags
from proxy.flights import Flights
from proxy.settings import Settings


def built(
    stack: AsyncExitStack,
    settings: Settings,
    kept: storage.Storage,
    flights: Flights,
    sources: Mapping[str, Source],
) -> Cache:
    """Return the cache over what is on the disk; ``stack`` closes it."""
    holdings, index, clock = kept.holdings, kept.index, kept.holdings.clock
    ram_bytes = int(settings.memory.manifests)
    lists = kept.lists
    manifests = Manifests(holdings, sources, lists=lists, clock=clock, ram_bytes=ram_bytes)
    stack.push_async_callback(manifests.close)
    tags = Tags(manifests, index, sources, clock=clock, patience=settings.timeouts.check)
    stack.push_async_callback(tags.close)
    expected = Expected(holdings.counters)
    sizes = manifests.sizes
    blobs = Blobs(holdings, sources, flights=flights, sizes=sizes, expected=expected)
    stack.push_async_callback(blobs.close)
    sweeps = Sweeps(holdings, sources, manifests=manifests, blobs=blobs)
    stack.push_async_callback(sweeps.close)
    bounds = Bounds(**settings.prefetch.model_dump())
    ahead = Ahead(blobs, sources, flights=flights, expected=expected, bounds=bounds)
    stack.push_async_callback(ahead.close)
    memory = settings.memory
    small = SmallBlobs(
        blobs, holdings, ram_bytes=int(memory.blobs), largest=int(memory.largest_blob)
    )
    listings = Listings(index, lists, sources, clock=clock, has_catalog=settings.catalog)
    referrers = ReferrersCache(manifests, holdings, sources, clock=clock)
    stack.push_async_callback(referrers.close)
    return Cache(manifests, tags, blobs, small, listings, referrers, ahead, sweeps)
