"""Keeps the cache below its limit: reserves space before writing, and evicts the coldest content.

Bytes are counted in 4 KiB blocks, spool and quarantine included, so that the limit holds at all
times. A victim is removed from the index first and from the disk second; a response that has it
open continues. A manifest is always colder than what it lists, so an image is evicted manifest
first, and layers that a warmer image shares stay. An arriving body takes space for the bytes that
have arrived and a small lead, whatever size was announced; ``unproven`` limits what it evicts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.content.free_space import FreeSpace
from proxy.content.notices import Evicted
from proxy.content.reservations import BodyReservation, NoSpace, Reservation
from proxy.content.unproven import Unproven
from proxy.core.names import Digest
from proxy.core.records import BlobRecord, Clock, disk_bytes
from proxy.core.units import show_size
from proxy.index import Index, Position
from proxy.runtime.executors import Pool, in_thread, run_to_completion
from proxy.runtime.metrics import CacheCounters
from proxy.storage.disk import DiskStore

WATCH_SECONDS: Final = 5.0
COUNT_SECONDS: Final = 3.0
"""Seconds that a download waits for the count of all files; then it is passed through."""

INDEX_IS_FREE: Final = 8 * 1024 * 1024
"""Bytes of the index's files that are not counted: an index of little content takes as much."""

_BATCH: Final = 256
"""Victims at once: a few milliseconds of the loop's time."""

_STEPS: Final = 64
_LONGEST_LEAD: Final = 16 * 1024 * 1024

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of the cache: ``max_size`` in bytes, of which the marks are shares, 0 to 1.

    ``min_free`` bytes of the file system stay free. ``max_age`` is the seconds for which content
    may go unused. ``unproven_share`` (0 to 1) of held content may be evicted for the
    unproven downloads of one upstream.
    """

    max_size: int
    high_mark: float = 1.0
    low_mark: float = 1.0
    min_free: int = 0
    max_age: float = float("inf")
    unproven_share: float = 1.0


class Evictor:
    """Accounts for every byte up to the limit.

    ``protected`` returns the content that must stay. Orphans are files without a row. Those of a
    killed process are known at the start. If the index was lost, they are known once the store has
    been read, and nothing is taken before that.
    """

    def __init__(
        self,
        index: Index,
        store: DiskStore,
        quota: Quota,
        *,
        counters: CacheCounters,
        protected: Callable[[], Awaitable[Container[Digest]]],
    ) -> None:
        self._index = index
        self._store = store
        self._counters = counters
        self._protected = protected
        self._promised = 0
        self._deleting = 0
        self._orphans = 0
        self._counted = asyncio.Event()
        self._eviction_requested = asyncio.Event()
        self._evicting = asyncio.Lock()
        self._free_space = FreeSpace(store, counters.count_storage_error)
        self.quota: Final = quota
        self.unproven = Unproven(quota.unproven_share)
        self.on_evicted: Final[list[Callable[[Evicted], None]]] = []
        """Called after each eviction, but not after a drop by an operator."""
        self.failure: str | None = None
        """The reason why the store could not be read; None if it could."""

    @property
    def used(self) -> int:
        """Disk bytes of content, promises, quarantine, deletions, orphans, and the index."""
        known = self._index.usage().disk_bytes + self._store.quarantine.bytes
        known += max(0, self._index.file_bytes - INDEX_IS_FREE)
        return known + self._promised + self._deleting + self._orphans

    @property
    def limit(self) -> int:
        """Most disk bytes that may be used now: ``max_size``, or less to keep ``min_free`` free."""
        if not self.quota.min_free:
            return self.quota.max_size
        # Promised bytes that have not arrived take no disk space yet.
        total = self._free_space.total(lambda: self.used - self.unproven.leads)
        if total is None:
            return self.quota.max_size
        return max(0, min(self.quota.max_size, total - self.quota.min_free))

    @property
    def limit_reason(self) -> str:
        """The setting that ``limit`` comes from, with its value, for people."""
        limit, most = self.limit, self.quota.max_size
        if limit >= most:
            return f"storage.max_size is {show_size(most)}"
        free = show_size(self.quota.min_free)
        return f"the disk has room for {show_size(limit)}, as storage.min_free keeps {free} free"

    async def reserve(self, size: int) -> Reservation:
        """Return a reservation of space for ``size`` bytes. Raises ``NoSpace``."""
        reservation = Reservation(self)
        await reservation.grow(size)
        return reservation

    @property
    def longest_lead(self) -> int:
        """Bytes that an arriving body may have promised beyond those that have arrived."""
        return min(_LONGEST_LEAD, self.quota.max_size // _STEPS)

    async def reserve_body(self, upstream: str | None, announced: int | None) -> BodyReservation:
        """Return space for a body of which nothing has arrived yet. Raises ``NoSpace``.

        ``upstream`` is None for a body from an operator.
        """
        if not self.admits(upstream, announced or 0):
            raise NoSpace(
                f"{announced} bytes do not fit, or would evict too much; {self.limit_reason}"
            )
        reservation = BodyReservation(self, upstream, announced)
        try:
            await reservation.grow(0)
        except BaseException:
            reservation.release()
            raise
        return reservation

    def admits(self, upstream: str | None, size: int) -> bool:
        """Return False if there is certainly no space for a body of ``size`` bytes (0: unknown).

        Nothing is certain before all files are counted.
        """
        self._free_space.expect(size)
        if size > self.limit:
            return False
        if upstream is None or size == 0 or not self._counted.is_set():
            return True
        held, free = self._index.usage().disk_bytes, max(0, self.limit - self.used)
        return self.unproven.admits(upstream, size, held=held, free=free)

    @property
    def _proven(self) -> int:
        """Disk bytes in use for anything but unproven downloads."""
        return self.used - self.unproven.bytes

    async def enforce(self, now: float) -> None:
        """Evict old content, and down to the low mark if the high mark is exceeded.

        Unproven bytes do not count: an endless body would evict everything, a little each time.
        """
        await self._counted.wait()
        async with self._evicting:
            await self._expire(now - self.quota.max_age)
            if self._proven > self.limit * self.quota.high_mark:
                low = self.limit * self.quota.low_mark
                await self._evict_down_to(low + self.unproven.bytes)

    async def watch(self, clock: Clock) -> None:
        """Call ``enforce`` whenever it may be needed, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._eviction_requested.wait()
            except TimeoutError:
                pass
            self._eviction_requested.clear()
            await self.enforce(clock())

    async def promise(self, more: int, upstream: str | None = None) -> None:
        """Promise ``more`` disk bytes, evicting as needed. Raises ``NoSpace``.

        ``upstream`` names the upstream whose unproven bytes they are. These count from here on:
        otherwise several downloads that wait for room would each evict a full share.
        """
        self._free_space.expect(more)
        limit = self.limit
        if self._promised + more > limit:
            raise NoSpace(f"{more} bytes do not fit: {self.limit_reason}")
        if upstream is not None:
            self.unproven.occupy(upstream, more)
        try:
            await self._count()
            if self.used + more > self.limit:
                await self._make_room(more, upstream)
        except BaseException:
            if upstream is not None:
                self.unproven.occupy(upstream, -more)
            raise
        self._promised += more
        self._request_eviction()

    def release(self, promised: int, upstream: str | None = None) -> None:
        """Release promised bytes."""
        self._promised -= promised
        if upstream is not None:
            self.unproven.occupy(upstream, -promised)
            self._request_eviction(promised)  # the index may count these bytes in a moment

    def _request_eviction(self, more: int = 0) -> None:
        if self._proven + more > self.limit * self.quota.high_mark:
            self._eviction_requested.set()

    def begin_deletion(self, size: int) -> None:
        """Count ``size`` disk bytes of content that leaves the index, until ``end_deletion``."""
        self._deleting += size

    def end_deletion(self, size: int) -> None:
        """Stop counting these bytes: their file is deleted, or in quarantine."""
        self._deleting -= size

    async def evict(self, wanted: int) -> tuple[int, int]:
        """Evict the coldest worth ``wanted`` disk bytes; return the blobs and bytes evicted."""
        async with self._evicting:
            return await self._evict_down_to(self.used - wanted)

    async def discard(self, digests: list[Digest]) -> tuple[int, int]:
        """Delete content now, however warm; return the blobs and disk bytes deleted."""
        async with self._evicting:
            records, evicted = await self._index.records(digests), Evicted()
            if records:
                await run_to_completion(self._evict(list(records.values()), evicted))
            return evicted.blobs, evicted.bytes

    async def coldest(self, wanted: int) -> list[BlobRecord]:
        """Return the content to evict next, in order, of at least ``wanted`` disk bytes."""
        return (await self._victims(wanted, float("inf")))[0]

    async def oldest_use(self) -> float | None:
        """Return when the coldest content was last used, Unix seconds; None if it is protected."""
        protected = await self._protected()
        first = await self._index.coldest(None, _BATCH)
        coldest = (record.used_at for _, record in first if record.digest not in protected)
        return next(coldest, None)

    def set_orphans(self, orphans: int) -> None:
        """Take the disk bytes of all orphans."""
        self._orphans = orphans
        self._free_space.expire()
        self.failure = None
        self._counted.set()

    def report_unreadable(self, problem: str) -> None:
        """Record the reason why the store cannot be read now; ``set_orphans`` follows later."""
        self.failure = problem

    def forget_orphans(self) -> None:
        """Record that rows were lost: there may be orphans until the store has been read."""
        self._counted.clear()

    def subtract_orphan(self, orphan: int) -> None:
        """Subtract bytes of orphans that have a row now, or are deleted."""
        self._orphans = max(0, self._orphans - orphan)

    async def _count(self) -> None:
        """Wait a limited time until all files are counted. Raises ``NoSpace``."""
        if self._counted.is_set():
            return  # a later scan that fails changes nothing
        if self.failure is not None:
            raise NoSpace(f"the content of the cache is not known: {self.failure}")
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                await self._counted.wait()
        except TimeoutError:
            raise NoSpace("the content on the disk is still being counted") from None

    async def _make_room(self, more: int, upstream: str | None) -> None:
        while self.used + more > self.limit:
            async with self._evicting:
                if self.used + more <= self.limit:
                    return
                held = self._index.usage().disk_bytes
                if upstream is not None and not self.unproven.may_evict(upstream, held):
                    raise NoSpace(f"unproven content of {upstream} may evict no more")
                await self._evict_down_to(self.limit - more)  # ``watch`` goes on to the low mark
                if self.used + more > self.limit:
                    raise NoSpace(
                        f"{more} bytes do not fit, nothing is left to evict: {self.limit_reason}"
                    )

    async def _evict_down_to(self, target: float) -> tuple[int, int]:
        """Evict until at most ``target`` disk bytes are used, or nothing is left to evict."""
        if self.used > target and self._store.quarantine.bytes:
            await in_thread(self._store.quarantine.empty, Pool.WRITE)
        after: Position | None = None
        with self._reporting() as evicted:
            while (excess := self.used - target) > 0:
                victims, after = await self._victims(excess, _BATCH, after)
                before = evicted.blobs
                if victims:
                    await run_to_completion(self._evict(victims, evicted))
                if evicted.blobs == before:
                    break
        if evicted.blobs:
            log.info("evicted", blobs=evicted.blobs, bytes=evicted.bytes)
        return evicted.blobs, evicted.bytes

    async def _expire(self, oldest: float) -> None:
        """Evict content that was last used before ``oldest``, Unix seconds."""
        victims, after = await self._victims(float("inf"), _BATCH, before=oldest)
        with self._reporting() as evicted:
            while victims:
                await run_to_completion(self._evict(victims, evicted))
                victims, after = await self._victims(float("inf"), _BATCH, after, before=oldest)

    @contextmanager
    def _reporting(self) -> Iterator[Evicted]:
        """Yield the account of one eviction, and notify listeners if something was evicted."""
        evicted = Evicted()
        try:
            yield evicted
        finally:
            if evicted.blobs:
                for listener in self.on_evicted:
                    listener(evicted)

    async def _victims(
        self,
        wanted: float,
        most: float,
        after: Position | None = None,
        before: float = float("inf"),
    ) -> tuple[list[BlobRecord], Position | None]:
        """Return the coldest blobs worth ``wanted`` disk bytes, ``most`` blobs at most.

        Only those that were last used before ``before``, Unix seconds. Also returns where the walk
        stopped: the next one goes on ``after`` that, so that one eviction passes by protected
        content once, however many batches it takes.
        """
        victims: list[BlobRecord] = []
        protected = await self._protected()
        while page := await self._index.coldest(after, _BATCH):
            for position, record in page:
                if wanted <= 0 or len(victims) >= most or record.used_at >= before:
                    return victims, after
                after = position
                if record.digest not in protected:
                    victims.append(record)
                    wanted -= disk_bytes(record.size)
        return victims, after

    async def _evict(self, victims: list[BlobRecord], evicted: Evicted) -> None:
        """Remove from index and disk, and count what is deleted. Must run to its end.

        A blob that cannot be deleted is held again, because it still takes its room.
        """
        records = {record.digest: record for record in victims}
        taken = sum(disk_bytes(record.size) for record in victims)
        self._deleting += taken
        digests = list(records)
        children = {
            digest: await self._index.children(digest)
            for digest, record in records.items()
            if record.media_type is not None
        }
        self._store.begin_deletion(digests)
        try:
            await self._index.drop_blobs(digests)
        finally:  # whatever happens: until then these digests cannot be stored again
            remaining = await self._store.delete(digests)
            self._deleting -= taken
        for digest in remaining:
            await self._index.set_blob(records[digest], children.get(digest, ()))
            self._index.touch(digest)  # others are evicted before it is tried again
        deleted = records.keys() - set(remaining)
        await self._index.delete_loose_files(deleted)
        self._counters.storage_errors += len(remaining)
        for record in victims:
            if record.digest in deleted:
                size = disk_bytes(record.size)
                evicted.add(record, size)
                self._counters.evictions += 1
                self._counters.evicted_bytes += size
