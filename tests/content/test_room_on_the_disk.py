"""Others write on the same disk: the limit follows the free space."""

from contextlib import suppress
from pathlib import Path

import pytest

from proxy.content import free_space
from proxy.content.reservations import NoSpace
from proxy.core.errors import StorageError
from proxy.core.records import BLOCK
from tests.fakes.clock import Clock
from tests.held import LIMIT, opened


async def test_others_on_the_disk_make_the_limit_smaller(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, clock, min_free=20 * BLOCK) as cache:
        free = 60 * BLOCK
        monkeypatch.setattr(cache.store, "free", lambda: free)
        monkeypatch.setattr(free_space, "FRESH_SECONDS", -1.0)
        assert cache.evictor.limit == 40 * BLOCK
        held = []
        for number in range(4):
            held.append(await cache.blocks(number))
            free -= 10 * BLOCK
        assert cache.evictor.limit == 40 * BLOCK
        free -= 15 * BLOCK  # by others
        await cache.evictor.enforce(clock())
        assert await cache.on_disk() == set(held[2:])
        free += 20 * BLOCK
        free += 200 * BLOCK
        assert cache.evictor.limit == LIMIT, "max_size holds as well"
        free = 0
        assert cache.evictor.limit == 0
        with pytest.raises(NoSpace):
            await cache.evictor.reserve(1)


async def test_a_file_system_that_tells_nothing_leaves_the_limit(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, clock, min_free=20 * BLOCK) as cache:

        def fails() -> int:
            raise StorageError("no answer")

        monkeypatch.setattr(cache.store, "free", fails)
        assert cache.evictor.limit == LIMIT


async def test_no_more_than_a_little_is_written_on_an_old_look_at_the_free_space(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_space, "FRESH_SECONDS", 3600.0)
    async with opened(tmp_path, clock, max_size=6400 * BLOCK, min_free=20 * BLOCK) as cache:
        free = 6000 * BLOCK
        monkeypatch.setattr(cache.store, "free", lambda: free)
        assert cache.evictor.limit == 5980 * BLOCK
        free = 320 * BLOCK  # others took the rest a moment ago
        assert not cache.evictor.admits("good", 2000 * BLOCK)
        free = 6000 * BLOCK
        assert cache.evictor.admits("good", 2000 * BLOCK)
        free = 320 * BLOCK
        body = await cache.evictor.reserve_body("good", None)
        with pytest.raises(NoSpace):
            await body.grow(301 * BLOCK)
        body.release()
        free = 6000 * BLOCK
        assert cache.evictor.admits("good", 2000 * BLOCK)
        free = 320 * BLOCK
        small = 0
        with suppress(NoSpace):
            while small < 600:
                await cache.evictor.reserve(BLOCK)
                small, free = small + 1, free - BLOCK
        assert 0 < small <= 300


async def test_bytes_that_have_come_are_no_longer_counted_as_a_lead(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_space, "FRESH_SECONDS", -1.0)
    async with opened(tmp_path, clock, max_size=6400 * BLOCK, min_free=20 * BLOCK) as cache:
        free = 1000 * BLOCK
        monkeypatch.setattr(cache.store, "free", lambda: free)
        arrival = await cache.evictor.reserve_body("good", 700 * BLOCK)
        for _ in range(700):
            await arrival.grow((1000 * BLOCK - free) + BLOCK)
            free -= BLOCK
            assert cache.evictor.limit == 980 * BLOCK
        arrival.release()


async def test_a_file_system_without_an_answer_is_not_asked_each_time(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, clock, min_free=20 * BLOCK) as cache:

        def fails() -> int:
            raise StorageError("no answer")

        monkeypatch.setattr(cache.store, "free", fails)
        before = cache.counters.storage_errors
        monkeypatch.setattr(free_space, "FRESH_SECONDS", -1.0)
        assert cache.evictor.limit == LIMIT
        monkeypatch.setattr(free_space, "FRESH_SECONDS", 3600.0)
        for _ in range(100):
            assert cache.evictor.limit == LIMIT
        assert cache.counters.storage_errors == before + 1
