"""A whole cache without a network, to be closed or abandoned and opened again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from proxy.content.content import Content
from proxy.content.eviction import Evictor, Quota, Reservation
from proxy.content.in_use import Feeds
from proxy.content.pins import Pins
from proxy.core.names import Image, parse_digest
from proxy.core.records import BLOCK
from proxy.index.sqlite import SqliteIndex
from proxy.runtime.metrics import CacheCounters
from proxy.storage.directory import Directory
from proxy.storage.disk import DiskSpool, DiskStore
from tests.fakes.clock import Clock
from tests.held import nothing_elsewhere
from tests.model import Content as Sample

LIMIT = 24 * BLOCK


@dataclass
class Cache:
    """All that is open."""

    directory: Directory
    index: SqliteIndex
    store: DiskStore
    pins: Pins
    evictor: Evictor
    content: Content
    downloads: list["Download"] = field(default_factory=list)


@dataclass
class Download:
    """A spool that grows under a reservation of `promised` bytes."""

    content: Sample
    reservation: Reservation
    spool: DiskSpool
    promised: int
    written: int = 0

    @classmethod
    async def begun(cls, cache: Cache, content: Sample, size: int) -> Self:
        reservation = await cache.evictor.reserve(size)
        spool = await cache.store.spool(content.digest, size)
        return cls(content, reservation, spool, size)

    async def grow(self, upto: int) -> None:
        await self.reservation.grow(upto)
        self.promised = max(self.promised, upto)
        if upto > self.written:
            self.spool.write(self.content.body[self.written : upto], self.written)
            self.written = upto

    async def finish(self) -> None:
        await self.grow(len(self.content.body))

    def end(self) -> None:
        self.spool.discard()
        self.spool.close()
        self.reservation.release()


async def opened(root: Path, clock: Clock) -> Cache:
    """Return a cache that has come into agreement with what lies there."""
    directory = Directory(root)
    store = DiskStore(directory)
    index = SqliteIndex(root / "index", clock=clock, on_error=_trouble)
    await index.__aenter__()
    feeds = Feeds(index, _by_digest, clock, None)
    pins = Pins(index, [], parse=_by_digest, limit=lambda: LIMIT, feeds=feeds)
    await pins.load(nothing_elsewhere)
    counters = CacheCounters()
    evictor = Evictor(index, store, Quota(LIMIT), counters=counters, protected=pins.protected)
    content = Content(store, index, evictor, counters, clock)
    await content.reconciler.reconcile()
    return Cache(directory, index, store, pins, evictor, content)


async def closed(cache: Cache) -> None:
    """End well."""
    for download in cache.downloads:
        download.end()
    await cache.index.__aexit__(None, None, None)
    cache.directory.close()


async def abandoned(cache: Cache) -> None:
    """End as a killed process does: nothing more is written, the kernel closes the files."""
    await cache.index._supervisor.close()
    cache.index.uses.pending.clear()
    await cache.index._facts.threads.close()
    for download in cache.downloads:
        download.spool.close()
    cache.directory.close()


def _trouble() -> None:
    raise AssertionError("the index met trouble")


def _by_digest(name: str) -> Image:
    return Image(None, None, parse_digest(name))
