"""Builds the read-through cache."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

from proxy.app.storage import Storage
from proxy.content.downloads import Downloads
from proxy.core.errors import ManifestUnknown
from proxy.core.names import Digest, Target
from proxy.repository import Cache
from proxy.repository.blobs import Blobs
from proxy.repository.cool_downs import CoolDowns
from proxy.repository.link_checks import LinkChecks
from proxy.repository.listings import Listings
from proxy.repository.manifest_cache import ManifestCache
from proxy.repository.manifests import Manifests
from proxy.repository.negative_cache import NegativeCache
from proxy.repository.origins import Origin
from proxy.repository.prefetch import Bounds, Prefetcher, PrefetchTracker
from proxy.repository.redirects import Redirects
from proxy.repository.referrers import ReferrersCache
from proxy.repository.sharing import Sharing
from proxy.repository.small_blobs import SmallBlobs
from proxy.repository.tag_lists import TagLists
from proxy.repository.tags import Tags
from proxy.settings import Settings


class LowerLayers(NamedTuple):
    """The layers below the cache. ``sharing`` None: there are no other replicas."""

    storage: Storage
    downloads: Downloads
    sources: Mapping[str, Origin]
    sharing: Sharing | None


async def build_cache(stack: AsyncExitStack, settings: Settings, below: LowerLayers) -> Cache:
    """Return the cache over the storage; ``stack`` closes it."""
    storage, downloads, sources, sharing = below
    content, clock = storage.content, storage.clock
    lists = TagLists(storage.expiring, clock)
    absences = NegativeCache(sources, ManifestUnknown, clock)
    await absences.load(storage.expiring)
    stack.push_async_callback(absences.save, storage.expiring)
    held = ManifestCache(content, int(settings.memory.manifests))
    stack.push_async_callback(held.close)
    manifests = Manifests(content, sources, held=held, lists=lists, absences=absences)
    stack.push_async_callback(manifests.close)
    expected = PrefetchTracker(storage.counters)
    blobs = Blobs(
        content,
        sources,
        downloads=downloads,
        sizes=held.sizes,
        on_request=expected.requested,
    )
    stack.push_async_callback(blobs.close)
    link_checks = LinkChecks(content, sources, manifests=manifests, blobs=blobs)
    stack.push_async_callback(link_checks.close)
    bounds = Bounds(**settings.prefetch.model_dump())
    prefetcher = Prefetcher(blobs, sources, downloads=downloads, expected=expected, bounds=bounds)
    stack.push_async_callback(prefetcher.close)
    memory = settings.memory
    small = SmallBlobs(
        blobs, content, ram_bytes=int(memory.blobs), largest=int(memory.largest_blob)
    )
    cool_downs = CoolDowns(content, sources, manifests=manifests, small=small)
    storage.pins.answers = cool_downs.answers
    patience = settings.timeouts.check
    tags = Tags(manifests, cool_downs, patience=patience, sharing=sharing)
    stack.push_async_callback(tags.close)
    listings = Listings(content, lists, sources, has_catalog=settings.catalog)
    referrers = ReferrersCache(manifests, content, sources, rows=storage.expiring)
    stack.push_async_callback(referrers.close)
    redirects = _redirects(settings, storage, held.sizes)
    return Cache(
        manifests, tags, blobs, small, listings, referrers, prefetcher, link_checks, redirects
    )


def _redirects(
    settings: Settings, storage: Storage, sizes: Mapping[tuple[Target, Digest], int]
) -> Redirects | None:
    tier = storage.bucket
    configured = None if settings.storage.bucket is None else settings.storage.bucket.redirect
    if configured is None or tier is None:
        return None
    return Redirects(
        storage.content,
        sizes,
        partial(tier.sign, seconds=configured.valid_for),
        min_size=configured.min_size,
        public_host=urlsplit(configured.public_endpoint).hostname or "",
    )
