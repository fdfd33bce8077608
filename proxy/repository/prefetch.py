"""Fetches the blobs of a manifest before the client that got the manifest requests them.

Only for image manifests that were a miss and that a client requested by GET. A client that only
inspects images requests no layers; unfinished prefetches are then abandoned.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

import structlog
from cachetools import LRUCache

from proxy.content.downloads import Downloads
from proxy.core.errors import NotFound, RegistryError, StorageError
from proxy.core.manifests import Children
from proxy.core.names import Digest, Target
from proxy.core.records import Child
from proxy.core.sources import Priority
from proxy.repository.blobs import Blobs
from proxy.repository.origins import Origin
from proxy.runtime.metrics import CacheCounters
from proxy.runtime.singleflight import SingleFlight

MAX_IMAGES: Final = 32
"""Maximum number of images at a time; blobs of further images are not prefetched."""

_MAX_UNUSED: Final = 100_000
"""Maximum number of prefetched blobs whose first use is counted."""

log = structlog.get_logger(__name__)


class Bounds(NamedTuple):
    """Limits: blobs and bytes of one image, blobs at a time of all images, seconds to wait."""

    blobs: int
    max_bytes: int
    concurrency: int
    idle_timeout: float


class Expectation:
    """A client has a manifest and may request its blobs; ``signs`` show that it pulls the image."""

    def __init__(self, blobs: Iterable[Digest], signs: Iterable[Digest]) -> None:
        self.blobs = frozenset(blobs)
        self.requested: set[Digest] = set()
        self.is_met = asyncio.Event()
        self._signs = frozenset(signs)

    def request(self, digest: Digest) -> None:
        """Record that a client requests one of the blobs."""
        self.requested.add(digest)
        if digest in self._signs:
            self.is_met.set()


class PrefetchTracker:
    """The blobs that clients are expected to request, and those prefetched because of that."""

    def __init__(self, counters: CacheCounters) -> None:
        self._counters = counters
        self._awaited: dict[tuple[str, Digest], set[Expectation]] = {}
        self._unused: LRUCache[tuple[str, Digest], int] = LRUCache(_MAX_UNUSED)

    @contextmanager
    def expecting(self, upstream: str, expectation: Expectation) -> Iterator[None]:
        """Pass requests for its blobs to an expectation, until the context ends."""
        keys = [(upstream, digest) for digest in expectation.blobs]
        for key in keys:
            self._awaited.setdefault(key, set()).add(expectation)
        try:
            yield
        finally:
            for key in keys:
                self._awaited[key].remove(expectation)
                if not self._awaited[key]:
                    del self._awaited[key]

    def requested(self, target: Target, digest: Digest) -> None:
        """Record that a client requests a blob, expected or not."""
        key = target.upstream, digest
        for expectation in self._awaited.get(key, ()):
            expectation.request(digest)
        if self._unused and (size := self._unused.pop(key, None)) is not None:
            self._used(size)

    def fetched(self, target: Target, digest: Digest, size: int, *, is_used: bool) -> None:
        """Count a prefetched blob of ``size`` bytes; ``is_used``: a client has requested it."""
        self._counters.prefetched_blobs += 1
        self._counters.prefetched_bytes += size
        if is_used:
            self._used(size)
        else:
            self._unused[target.upstream, digest] = size

    def abandoned(self, size: int) -> None:
        """Count the ``size`` bytes of an abandoned prefetch."""
        self._counters.prefetched_bytes += size

    def _used(self, size: int) -> None:
        self._counters.prefetched_used_blobs += 1
        self._counters.prefetched_used_bytes += size


class Prefetcher:
    """Owns its tasks from ``begin`` until they end or ``close`` cancels them."""

    def __init__(
        self,
        blobs: Blobs,
        sources: Mapping[str, Origin],
        *,
        downloads: Downloads,
        expected: PrefetchTracker,
        bounds: Bounds,
    ) -> None:
        self._blobs = blobs
        self._sources = sources
        self._downloads = downloads
        self._expected = expected
        self._bounds = bounds
        self._slots = asyncio.Semaphore(bounds.concurrency)
        self._images: SingleFlight[None] = SingleFlight("prefetch")

    def begin(self, target: Target, children: Children | None) -> None:
        """Start to fetch the blobs of a manifest that a client has just got."""
        source = self._sources.get(target.upstream)
        if source is None:  # removed from the configuration since the manifest was asked for
            return
        is_refused = not source.blob_sources or source.is_scarce
        if is_refused or not self._bounds.blobs or len(self._images) >= MAX_IMAGES:
            return
        blobs = self._within_bounds(() if children is None else children.blobs)
        if not blobs:
            return
        self._images.start((target, *blobs), partial(self._fetch_all, target, blobs))

    async def close(self) -> None:
        """Cancel running tasks and wait until they have ended."""
        await self._images.close()

    def _within_bounds(self, listed: tuple[Child, ...]) -> list[Digest]:
        """Return the first blobs, up to the limits on their number and their bytes together."""
        blobs: dict[Digest, None] = {}
        left = self._bounds.max_bytes
        for blob in listed:
            if blob.digest in blobs or blob.size > left:
                continue
            if len(blobs) == self._bounds.blobs:
                break
            left -= blob.size
            blobs[blob.digest] = None
        return list(blobs)

    async def _fetch_all(self, target: Target, blobs: list[Digest]) -> None:
        """Fetch blobs; abandon them unless the client requests a layer within ``idle_timeout``.

        The first blob is the configuration: clients that only inspect images read it too.
        """
        expectation = Expectation(blobs, blobs[1:] or blobs)
        with self._expected.expecting(target.upstream, expectation):
            async with asyncio.TaskGroup() as group:
                work = [
                    group.create_task(self._fetch(target, digest, expectation)) for digest in blobs
                ]
                try:
                    async with asyncio.timeout(self._bounds.idle_timeout):
                        await expectation.is_met.wait()
                except TimeoutError:
                    for task in work:
                        task.cancel()

    async def _fetch(self, target: Target, digest: Digest, expectation: Expectation) -> None:
        """Fetch one blob unless it is held, arriving, or would delay other downloads."""
        async with self._slots:
            if not self._sources[target.upstream].upstream.slots.has_spare:
                return
            reader = await self._blobs.begin(target, digest, Priority.PREFETCH)
            if reader is None:
                return
            download = reader.download
            try:
                await download.proven()
                is_used = digest in expectation.requested
                self._expected.fetched(target, digest, download.written, is_used=is_used)
            except (RegistryError, StorageError) as error:
                log.info("not prefetched", digest=digest, reason=str(error))
                if isinstance(error, NotFound):
                    await self._blobs.absences.learn(target, digest, error)
            except asyncio.CancelledError:
                self._expected.abandoned(download.written)
                raise
            finally:
                self._downloads.abandon(reader)
