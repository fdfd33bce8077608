import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy.evict import Evictor, NoRoom, Quota
from proxy.index.local import LocalIndex
from proxy.metrics import CacheCounters
from proxy.names import Digest, sha256
from proxy.records import BlobRecord
from proxy.store.directory import Directory
from proxy.store.disk import DiskStore
from tests.fakes.clock import Clock

BLOCK = 4096
LIMIT = 100 * BLOCK


class Cache:
    def __init__(self, store: DiskStore, index: LocalIndex, clock: Clock) -> None:
        self.store, self.index, self.clock = store, index, clock
        self.counters = CacheCounters()
        self.spared: set[Digest] = set()
        self.evictor = Evictor(
            index, store, Quota(LIMIT), counters=self.counters, spared=lambda: self.spared
        )
        self.evictor.found(0)

    async def hold(self, number: int, blocks: int = 10) -> Digest:
        data = number.to_bytes(4) * (blocks * BLOCK // 4)
        digest = sha256(data)
        reservation = await self.evictor.reserve(len(data))
        spool = await self.store.spool(digest, len(data))
        spool.write(data, 0)
        await self.store.put(digest, spool)
        spool.close()
        reservation.release()
        await self.index.set_blob(BlobRecord(digest, len(data), None, self.clock()))
        self.clock.advance(1)
        return digest

    async def on_disk(self) -> set[Digest]:
        return {digest async for batch in self.store.scan() for digest, _, _ in batch}


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Cache]:
    async with AsyncExitStack() as stack:
        directory = Directory(tmp_path)
        stack.callback(directory.close)
        store = DiskStore(directory)
        index = LocalIndex(tmp_path / "index", clock=clock, on_trouble=lambda: None)
        yield Cache(store, await stack.enter_async_context(index), clock)


async def test_the_coldest_goes_and_the_hot_stays(cache: Cache) -> None:
    held = [await cache.hold(number) for number in range(10)]
    assert cache.evictor.used == LIMIT
    cache.index.touch(held[0])
    await cache.hold(99)
    kept = await cache.on_disk()
    assert held[0] in kept
    assert held[1] not in kept
    assert cache.counters.evictions >= 1
    assert cache.counters.evicted_bytes == cache.counters.evictions * 10 * BLOCK
    assert cache.evictor.used <= LIMIT


async def test_the_limit_holds_at_every_moment(cache: Cache, tmp_path: Path) -> None:
    worst = 0

    async def watch() -> None:
        nonlocal worst
        while True:
            files = [*(tmp_path / "blobs").rglob("*"), *(tmp_path / "spool").iterdir()]
            worst = max(worst, sum(file.stat().st_size for file in files if file.is_file()))
            worst = max(worst, cache.evictor.used)
            await asyncio.sleep(0)

    few = asyncio.Semaphore(4)

    async def hold(number: int) -> None:
        async with few:
            await cache.hold(number, 1 + number % 20)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*map(hold, range(60)))
    watcher.cancel()
    assert 0 < worst <= LIMIT


async def test_what_can_never_fit_evicts_nothing(cache: Cache) -> None:
    held = await cache.hold(1)
    with pytest.raises(NoRoom):
        await cache.evictor.reserve(LIMIT + 1)
    assert await cache.on_disk() == {held}


async def test_what_is_promised_to_others_cannot_be_had(cache: Cache) -> None:
    others = await cache.evictor.reserve(LIMIT)
    with pytest.raises(NoRoom):
        await cache.evictor.reserve(1)
    others.release()
    others.release()
    (await cache.evictor.reserve(LIMIT)).release()
    assert cache.evictor.used == 0


async def test_a_promise_grows_and_keeps_what_it_has_when_it_cannot(cache: Cache) -> None:
    growing = await cache.evictor.reserve(0)
    assert cache.evictor.used == 0
    await growing.grow(BLOCK + 1)
    await growing.grow(1)
    assert cache.evictor.used == 2 * BLOCK
    with pytest.raises(NoRoom):
        await growing.grow(LIMIT + 1)
    assert cache.evictor.used == 2 * BLOCK
    growing.release()
    assert cache.evictor.used == 0


async def test_t36_an_open_blob_is_readable_after_its_eviction(cache: Cache) -> None:
    held = await cache.hold(1)
    file = cache.store.open(held)
    assert file is not None
    (await cache.evictor.reserve(LIMIT)).release()
    assert cache.store.open(held) is None
    assert sha256(file.read()) == held
    file.close()
