"""Fetches the blobs of a manifest before the client that got the manifest asks for them.

Only for image manifests that were a miss and that a client asked for by GET. A client that only
inspects images asks for no layers; unfinished prefetches are then abandoned.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

import structlog

from proxy.content.downloads import Downloads
from proxy.core import policy
from proxy.core.errors import NotFound, RegistryError, StorageError
from proxy.core.manifests import Children
from proxy.core.names import Digest, Target
from proxy.core.records import Child
from proxy.repository.blobs import Blobs
from proxy.repository.origins import Origin
from proxy.repository.prefetch_tracker import Expectation, PrefetchTracker
from proxy.runtime.singleflight import SingleFlight

MAX_IMAGES: Final = 32
"""Images at a time; blobs of further images are not prefetched."""

log = structlog.get_logger(__name__)


class Bounds(NamedTuple):
    """Limits: blobs and bytes of one image, blobs at a time of all images, seconds to wait."""

    blobs: int
    max_bytes: int
    concurrency: int
    idle_timeout: float


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
        self._at_once = asyncio.Semaphore(bounds.concurrency)
        self._images: SingleFlight[None] = SingleFlight("prefetch")

    def begin(self, target: Target, children: Children | None) -> None:
        """Start to fetch the blobs of a manifest that a client has just got."""
        source = self._sources.get(target.upstream)
        if source is None:  # removed from the configuration since the manifest was asked for
            return
        rule, upstream = source.rule, source.upstream
        is_refused = rule.offline or policy.is_scarce(rule, upstream.budget.share)
        if is_refused or not self._bounds.blobs or len(self._images) >= MAX_IMAGES:
            return
        blobs = self._within_bounds(() if children is None else children.blobs)
        if not blobs:
            return
        self._images.start((target, *blobs), partial(self._fetch_all, target, blobs))

    async def close(self) -> None:
        """Cancel what runs, and wait until it has ended."""
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
        """Fetch blobs until ``give_up`` has passed without a sign that the client wants layers.

        The first blob is the configuration: clients that only inspect images read it too.
        """
        expectation = self._expected.begin(target, blobs, blobs[1:] or blobs)
        try:
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
        finally:
            self._expected.end(expectation)

    async def _fetch(self, target: Target, digest: Digest, expectation: Expectation) -> None:
        """Fetch one blob unless it is held, arriving, or would delay other downloads."""
        async with self._at_once:
            if not self._sources[target.upstream].upstream.slots.has_some_to_spare:
                return
            reader = await self._blobs.prefetch(target, digest)
            if reader is None:
                return
            download = reader.download
            try:
                await download.proven()
                self._expected.fetched(expectation, digest, download.written)
            except (RegistryError, StorageError) as error:
                log.info("not prefetched", digest=digest, reason=str(error))
                if isinstance(error, NotFound):
                    await self._blobs.learn_absence(target, digest, error)
            except asyncio.CancelledError:
                self._expected.given_up(download.written)
                raise
            finally:
                self._downloads.abandon(reader)
