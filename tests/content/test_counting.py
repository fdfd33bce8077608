"""What lies on the disk is counted before anything is evicted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy.content import eviction
from proxy.content.reservations import NoSpace
from proxy.core.errors import StorageError
from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK
from tests.fakes.clock import Clock
from tests.held import Held, begun, opened


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


def killed_before_its_row(cache: Held, number: int, blocks: int) -> Digest:
    """Leave a file whose row has not been written."""
    data = number.to_bytes(4) * (blocks * BLOCK // 4)
    cache.path(sha256(data)).write_bytes(data)
    return sha256(data)


async def test_t05_what_a_killed_process_left_is_counted_before_the_first_download(
    tmp_path: Path, clock: Clock
) -> None:
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        await cache.content.reconciler.reconcile()
        await cache.blocks(1, 10)
        is_proven = killed_before_its_row(cache, 2, 30)
        await cache.index.add_loose_files([is_proven])
        await cache.index.add_loose_files([sha256(b"of this the file never came")])
        evicted = await cache.blocks(3, 20)
        await cache.index.drop_blobs([evicted])  # and its file is not yet deleted
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        assert cache.evictor.used == 60 * BLOCK, "at once, without a look at all files"
        with pytest.raises(NoSpace):
            await cache.evictor.reserve(51 * BLOCK)
        (await cache.evictor.reserve(50 * BLOCK)).release()
        assert set(await cache.index.loose_files()) == {is_proven, evicted}
        assert await cache.content.holds(is_proven), "it is adopted when it is asked for"
        assert cache.evictor.used == 50 * BLOCK
        await cache.content.reconciler.reconcile()
        assert cache.evictor.used == 50 * BLOCK
        assert await cache.content.holds(evicted)
        assert await cache.index.loose_files() == []


async def test_t05_orphans_that_are_not_adopted_yet_are_looked_for_at_the_next_start(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "COUNT_SECONDS", 0.01)
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        await cache.content.reconciler.reconcile()
        killed_before_its_row(cache, 2, 30)  # as a power cut leaves it: the index knows of nothing
        monkeypatch.setattr(cache.store, "open", _broken)
        await cache.content.reconciler.reconcile()
        monkeypatch.undo()
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        monkeypatch.setattr(eviction, "COUNT_SECONDS", 0.01)
        with pytest.raises(NoSpace, match="counted"):
            await cache.evictor.reserve(BLOCK)
        await cache.content.reconciler.reconcile()
        assert cache.evictor.used == 30 * BLOCK
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        (await cache.evictor.reserve(BLOCK)).release()


def _broken(_: Digest) -> None:
    raise StorageError("Input/output error")


async def test_t05_a_lost_index_tells_no_bound_so_the_first_download_waits_for_the_count(
    tmp_path: Path, clock: Clock
) -> None:
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        asking = asyncio.create_task(cache.evictor.reserve(30 * BLOCK))
        others = asyncio.create_task(cache.evictor.reserve(30 * BLOCK))
        await asyncio.sleep(0.05)
        assert not asking.done()
        cache.evictor.set_orphans(50 * BLOCK)
        reservation = await asking
        with pytest.raises(NoSpace):
            await others
        reservation.release()


async def test_nothing_is_evicted_before_the_count(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        cache.evictor.set_orphans(0)
        held = [await cache.blocks(number) for number in range(10)]
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock, low_mark=0.5, high_mark=0.5)
        enforcing = asyncio.create_task(cache.evictor.enforce(clock()))
        monkeypatch.setattr(eviction, "COUNT_SECONDS", 0.01)
        with pytest.raises(NoSpace, match="counted"):
            await cache.evictor.reserve(10 * BLOCK)
        assert await cache.on_disk() == set(held)
        cache.evictor.set_orphans(0)
        await enforcing
        assert await cache.on_disk() == set(held[5:])


async def test_a_later_look_that_fails_does_not_stop_eviction(cache: Held) -> None:
    held = [await cache.blocks(number) for number in range(10)]
    cache.evictor.report_unreadable("the directory cannot be listed")
    (await cache.evictor.reserve(10 * BLOCK)).release()
    assert await cache.on_disk() == set(held[1:])
