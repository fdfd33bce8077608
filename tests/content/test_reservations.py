"""Room for what arrives: how much may be evicted for bytes that are not proven yet."""

import asyncio
from pathlib import Path

import pytest

from proxy.content.reservations import NoSpace
from proxy.core.names import sha256
from proxy.core.records import BLOCK
from tests.fakes.clock import Clock
from tests.held import LIMIT, Held, opened
from tests.running import until


def watched(cache: Held) -> "asyncio.Task[None]":
    return asyncio.create_task(cache.evictor.watch(cache.clock))


async def test_t50_unproven_bytes_of_one_upstream_evict_one_share_together(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock, unproven_share=0.2) as cache:
        for number in range(50):
            await cache.blocks(number, 2)
        first, second = [await cache.evictor.reserve_body("evil", None) for _ in range(2)]
        await first.grow(14 * BLOCK)
        with pytest.raises(NoSpace):
            await second.grow(8 * BLOCK)
        await second.grow(4 * BLOCK)
        assert cache.index.usage().disk_bytes >= 0.78 * LIMIT
        await (await cache.evictor.reserve_body("good", None)).grow(10 * BLOCK)
        assert cache.evictor.used <= LIMIT
        first.release()
        first.release()
        await second.grow(18 * BLOCK)
        second.release()
        left = cache.index.usage().disk_bytes
        for _ in range(10):
            next_one = await cache.evictor.reserve_body("evil", None)
            with pytest.raises(NoSpace):
                await next_one.grow(50 * BLOCK)
            next_one.release()
        assert cache.index.usage().disk_bytes == left, "not a little more each time"


async def test_t50_many_that_wait_for_room_at_once_evict_one_share(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock, unproven_share=0.1) as cache:
        for number in range(50):
            await cache.blocks(number, 2)
        arrivals = [await cache.evictor.reserve_body("evil", None) for _ in range(8)]
        grown = [arrival.grow(5 * BLOCK) for arrival in arrivals]
        results = await asyncio.gather(*grown, return_exceptions=True)
        assert [result for result in results if result is not None], "not all found room"
        assert cache.index.usage().disk_bytes >= 0.88 * LIMIT


async def test_t50_the_background_evicts_nothing_for_unproven_bytes(
    tmp_path: Path, clock: Clock
) -> None:
    quota = {"high_mark": 0.8, "low_mark": 0.5, "unproven_share": 0.1}
    async with opened(tmp_path, clock, **quota) as cache:
        held = {await cache.blocks(number) for number in range(7)}
        arrival = await cache.evictor.reserve_body("evil", None)
        await arrival.grow(25 * BLOCK)
        assert cache.evictor.used > 0.9 * LIMIT
        await cache.evictor.enforce(clock())
        assert await cache.on_disk() == held
        watcher = watched(cache)
        await cache.blocks(99, 1)
        arrival.release()
        held.add(await cache.blocks(100))
        await until(lambda: cache.evictor.used <= LIMIT * 0.5)
        assert await cache.on_disk() < {*held, sha256((99).to_bytes(4) * (BLOCK // 4))}
        watcher.cancel()


async def test_t50_announced_sizes_evict_nothing_and_do_not_all_begin(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock, unproven_share=0.1) as cache:
        for number in range(7):
            await cache.blocks(number)
        first = await cache.evictor.reserve_body("evil", 25 * BLOCK)
        with pytest.raises(NoSpace):
            await cache.evictor.reserve_body("evil", 10 * BLOCK)
        good = await cache.evictor.reserve_body("good", 10 * BLOCK)
        await good.grow(10 * BLOCK)
        assert cache.counters.evictions == 0
        for arrival in (first, good):
            arrival.release()
        (await cache.evictor.reserve_body("evil", 30 * BLOCK)).release()
        assert cache.evictor.used == 70 * BLOCK
        assert cache.evictor.unproven.bytes == 0


async def test_t50_a_body_that_arrives_has_a_small_lead_and_none_behind_its_end(
    tmp_path: Path, clock: Clock
) -> None:
    limit = 6400 * BLOCK
    async with opened(tmp_path, clock, max_size=limit) as cache:
        arrival = await cache.evictor.reserve_body("good", 1000 * BLOCK)
        for come in range(0, 1000, 10):
            await arrival.grow(come * BLOCK)
            assert come * BLOCK <= cache.evictor.used <= (come + 100) * BLOCK
        await asyncio.gather(*(arrival.grow(1000 * BLOCK) for _ in range(4)))
        assert cache.evictor.used == 1000 * BLOCK
        arrival.release()
        assert cache.evictor.used == 0
