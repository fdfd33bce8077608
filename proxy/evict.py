"""Keeps the cache inside its limit: reserve before writing, forget the coldest to make room.

Bytes are counted in 4 KiB blocks, the spool included, so that the limit holds at all times. A
victim leaves the index first and the disk after; who has it open goes on reading.
"""

import asyncio
from typing import Final

import structlog

from proxy.errors import StorageError
from proxy.index import Index
from proxy.metrics import CacheCounters
from proxy.records import BlobRecord, disk_bytes
from proxy.store import BlobStore
from proxy.threads import to_its_end

SLACK: Final = 0.01
"""Share of the limit that an eviction frees beyond need, so that not every download evicts."""

log = structlog.get_logger(__name__)


class NoRoom(StorageError):
    """Nothing can be evicted that would make this fit."""


class Reservation:
    """Disk bytes promised to one download; released once the index counts them, or never."""

    def __init__(self, evictor: "Evictor") -> None:
        self._evictor = evictor
        self._bytes = 0

    async def grow(self, size: int) -> None:
        """Make the promise cover ``size`` bytes. Raises ``NoRoom``."""
        more = disk_bytes(size) - self._bytes
        if more > 0:
            await self._evictor.take(more)
            self._bytes += more

    def release(self) -> None:
        """Give the promise back; twice does no harm."""
        self._evictor.give_back(self._bytes)
        self._bytes = 0


class Evictor:
    """Accounts for every byte between the limit and what is held."""

    def __init__(self, index: Index, store: BlobStore, limit: int, counters: CacheCounters) -> None:
        self._index = index
        self._store = store
        self._counters = counters
        self._promised = 0
        self._condemned = 0
        self._evicting = asyncio.Lock()
        self.limit: Final = limit

    @property
    def used(self) -> int:
        """Disk bytes held, promised, or not yet unlinked."""
        return self._index.usage().disk_bytes + self._promised + self._condemned

    async def reserve(self, size: int) -> Reservation:
        """Return a promise of room for ``size`` bytes. Raises ``NoRoom``."""
        reservation = Reservation(self)
        await reservation.grow(size)
        return reservation

    async def enforce(self) -> None:
        """Evict what exceeds the limit, which may have been lowered."""
        await self._index.ready()
        async with self._evicting:
            await self._make_room(0)

    async def take(self, more: int) -> None:
        """Promise ``more`` disk bytes, evicting as needed. Raises ``NoRoom``."""
        if self._promised + more > self.limit:
            raise NoRoom(f"{more} bytes do not fit into a cache of {self.limit}")
        await self._index.ready()
        while self.used + more > self.limit:
            async with self._evicting:
                await self._make_room(more)
        self._promised += more

    def give_back(self, promised: int) -> None:
        """Take back a promise."""
        self._promised -= promised

    async def _make_room(self, more: int) -> None:
        excess = self.used + more - self.limit
        if excess <= 0:
            return
        victims, freed = self._victims(excess, excess + int(self.limit * SLACK))
        if freed < excess:
            raise NoRoom(f"{more} bytes do not fit: nothing is left to evict")
        await to_its_end(self._evict(victims, freed))

    async def _evict(self, victims: list[BlobRecord], freed: int) -> None:
        """Forget and delete; never left half done, or its room would be lost for ever."""
        self._condemned += freed
        sizes = {record.digest: disk_bytes(record.size) for record in victims}
        digests = list(sizes)
        self._store.condemn(digests)
        await self._index.drop_blobs(digests)
        remaining = await self._store.delete(digests)
        self._condemned -= freed - sum(sizes[digest] for digest in remaining)
        self._counters.evictions += len(victims)
        self._counters.evicted_bytes += freed
        log.info("evicted", blobs=len(victims), bytes=freed)

    def _victims(self, needed: int, wanted: int) -> tuple[list[BlobRecord], int]:
        """Return the coldest blobs worth ``wanted`` disk bytes, ``needed`` at the least."""
        victims: list[BlobRecord] = []
        freed = 0
        for record in self._index.coldest():
            if freed >= wanted:
                break
            victims.append(record)
            freed += disk_bytes(record.size)
        return victims, freed if freed >= needed else 0
