"""Keeps the bucket below its limit by deleting the least recently used objects.

The machine with the lease lists the objects of the bucket once an hour, or earlier if uploads have
filled it. The last use of an object is the latest one by any machine, and never earlier than its
upload.
"""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.content.local_storage import LocalStorage
from proxy.core.errors import StorageError, UpstreamUnavailable
from proxy.core.names import Digest
from proxy.storage.bucket.client import BucketClient, Entry
from proxy.storage.bucket.recency import Recency

LOW_MARK: Final = 0.95
"""Share of the limit at which eviction stops."""

CHECK_SECONDS: Final = 3600.0
WATCH_SECONDS: Final = 30.0
_MAX_VICTIMS: Final = 50_000
_BATCH: Final = 500

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Victim:
    """An object that may be deleted; ``used_at`` in Unix seconds, ``size`` in bytes."""

    used_at: float
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class BucketUsage:
    """The content of the bucket at the last listing. ``limit_bytes`` None: there is no limit."""

    objects: int
    bytes: int
    limit_bytes: int | None


class BucketEvictor:
    """Deletes objects above ``limit`` bytes. ``protected`` returns the content that must stay."""

    def __init__(
        self,
        client: BucketClient,
        local_storage: LocalStorage,
        recency: Recency,
        *,
        limit: int | None,
        protected: Callable[[], Awaitable[Container[Digest]]],
    ) -> None:
        self._client = client
        self._index, self._counters = local_storage.index, local_storage.counters
        self._recency = recency
        self._limit = limit
        self._protected = protected
        self._listed_at = float("-inf")
        self._uploaded = 0  # bytes, by this machine, at that time
        self.usage = BucketUsage(0, 0, limit)

    async def watch(self) -> None:
        """Call ``enforce`` whenever it may be needed, until cancelled."""
        while True:
            is_old = time.monotonic() - self._listed_at >= CHECK_SECONDS
            uploaded = self._counters.bucket_uploaded_bytes - self._uploaded
            is_full = self._limit is not None and self.usage.bytes + uploaded > self._limit
            if is_old or (is_full and uploaded):
                try:
                    await self.enforce()
                except (UpstreamUnavailable, StorageError) as error:
                    log.warning("the bucket cannot be listed", error=str(error))
            await asyncio.sleep(WATCH_SECONDS)

    async def enforce(self) -> None:
        """Delete the coldest objects if there are too many bytes.

        Raises ``UpstreamUnavailable``, ``StorageError``.
        """
        async with self._recency.lease() as is_ours:
            if not is_ours:
                return
            while True:
                uploaded = self._counters.bucket_uploaded_bytes
                objects, total = 0, 0
                async for page in self._client.scan():
                    objects += len(page)
                    total += sum(entry.size for entry in page)
                self.usage = BucketUsage(objects, total, self._limit)
                self._listed_at, self._uploaded = time.monotonic(), uploaded
                if self._limit is None or total <= self._limit:
                    return
                victims = await self.coldest(total - int(self._limit * LOW_MARK))
                if not await self._delete(victims):
                    return

    async def coldest(self, wanted: int) -> list[Victim]:
        """Return the objects to delete next, in order, of at least ``wanted`` bytes.

        Raises ``UpstreamUnavailable``, ``StorageError``.
        """
        hottest_first: list[tuple[float, Digest, int]] = []
        collected = 0
        async for page in self._candidates():
            for one in page:
                heapq.heappush(hottest_first, (-one.used_at, one.digest, one.size))
                collected += one.size
                while hottest_first and (
                    collected - hottest_first[0][2] >= wanted or len(hottest_first) > _MAX_VICTIMS
                ):
                    collected -= heapq.heappop(hottest_first)[2]
        return sorted(Victim(-used, digest, size) for used, digest, size in hottest_first)

    async def evict(self, wanted: int) -> tuple[int, int]:
        """Delete the coldest objects worth ``wanted`` bytes; return the objects and bytes deleted.

        Raises ``UpstreamUnavailable``, ``StorageError``.
        """
        victims = await self.coldest(wanted)
        await self._delete(victims)
        return len(victims), sum(one.size for one in victims)

    async def _candidates(self) -> AsyncIterator[list[Victim]]:
        protected = await self._protected()
        async for page in self._client.scan():
            digests = [entry.digest for entry in page if entry.digest not in protected]
            uses = await self._recency.last_used(digests)
            for digest, used_at in (await self._index.last_uses(digests)).items():
                uses[digest] = max(used_at, uses.get(digest, 0.0))
            yield [_victim(one, uses) for one in page if one.digest not in protected]

    async def _delete(self, victims: list[Victim]) -> int:
        for start in range(0, len(victims), _BATCH):
            batch = victims[start : start + _BATCH]
            await self._client.delete([one.digest for one in batch])
            self._counters.bucket_evictions += len(batch)
            self._counters.bucket_evicted_bytes += sum(one.size for one in batch)
        if victims:
            freed = sum(one.size for one in victims)
            log.info("evicted from the bucket", objects=len(victims), bytes=freed)
        return len(victims)


def _victim(entry: Entry, uses: dict[Digest, float]) -> Victim:
    used_at = max(entry.modified_at, uses.get(entry.digest, 0.0))
    return Victim(used_at, entry.digest, entry.size)
