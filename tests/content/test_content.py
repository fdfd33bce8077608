"""Content that leaves the cache counts into the limit until its bytes are gone from the disk."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK, BlobRecord, disk_bytes
from tests.fakes.clock import Clock
from tests.held import LIMIT, Held, begun, opened
from tests.running import until

Leave = Callable[[Held, Digest], Any]


async def drop(cache: Held, digest: Digest) -> None:
    await cache.content.faults.drop(digest, reason="a test")


async def set_aside(cache: Held, digest: Digest) -> None:
    await cache.content.faults.quarantine(digest, {"reason": "a test"})


async def evict(cache: Held, _: Digest) -> None:
    await cache.evictor.evict(1)


LEAVES = pytest.mark.parametrize(
    "leave", [drop, set_aside, evict], ids=lambda leave: leave.__name__
)


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


class SlowDisk:
    """Holds back what takes a file's name away, until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        for call in ("unlink", "rename"):
            monkeypatch.setattr(os, call, self._slow(getattr(os, call)))

    def _slow(self, call: Callable[..., None]) -> Callable[..., None]:
        def slow(*args: Any, **kwargs: Any) -> None:
            if not self.go_on.is_set():
                self.reached.set()
                assert self.go_on.wait(60)
            call(*args, **kwargs)

        return slow


def on_disk(root: Path) -> int:
    """Return the disk bytes of all content, wherever it lies."""
    places = [root / name for name in ("blobs/sha256", "spool", "quarantine")]
    return sum(disk_bytes(file.stat().st_size) for place in places for file in place.iterdir())


@LEAVES
async def test_bytes_count_until_they_are_unlinked(
    cache: Held, leave: Leave, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = await cache.blocks(1, 14)
    disk = SlowDisk(monkeypatch)
    leaving = asyncio.create_task(leave(cache, digest))
    try:
        await until(disk.reached.is_set)
        assert await cache.index.blob(digest) is None
        assert cache.evictor.used >= on_disk(tmp_path) == 14 * BLOCK
    finally:
        disk.go_on.set()
        await leaving
    assert cache.evictor.used == on_disk(tmp_path)


@LEAVES
async def test_a_full_cache_stays_within_its_limit_while_bytes_leave(
    cache: Held, leave: Leave, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held = [await cache.blocks(number) for number in range(9)]
    disk = SlowDisk(monkeypatch)
    leaving = asyncio.create_task(leave(cache, held[0]))
    await until(disk.reached.is_set)
    arriving = asyncio.create_task(cache.evictor.reserve(20 * BLOCK))
    given_early, _ = await asyncio.wait([arriving], timeout=0.3)
    assert not given_early, "the room of a file that still lies there was given away"
    disk.go_on.set()
    await leaving
    reservation = await arriving
    assert on_disk(tmp_path) + 20 * BLOCK <= LIMIT
    reservation.release()
    assert cache.evictor.used == on_disk(tmp_path)


async def test_bytes_that_cannot_be_unlinked_go_on_counting(
    cache: Held, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = await cache.blocks(1, 14)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr(os, "unlink", fail)
        await drop(cache, digest)
    assert on_disk(tmp_path) == 14 * BLOCK
    assert cache.evictor.used == 14 * BLOCK


def file_without_a_row(cache: Held, number: int, blocks: int) -> Digest:
    """Put a blob there as a killed process leaves it; blobs are never alike."""
    data = number.to_bytes(4) * (blocks * BLOCK // 4)
    digest = sha256(data)
    cache.path(digest).write_bytes(data)
    return digest


async def test_a_row_without_a_file_hides_no_file_without_a_row(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock) as before:
        await before.content.reconciler.reconcile()
        ghosts = [await before.blocks(number, 20) for number in range(3)]
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        for number, ghost in enumerate(ghosts):  # the power was cut: unlinked, but no row is gone
            cache.path(ghost).unlink()
            file_without_a_row(cache, 100 + number, 20)
        room = await cache.evictor.reserve(10 * BLOCK)
        for ghost in ghosts:
            assert await cache.content.open(ghost) is None
        await cache.content.reconciler.reconcile()
        assert cache.evictor.used == on_disk(tmp_path) + 10 * BLOCK
        room.release()


async def test_a_download_stored_during_the_adoption_is_not_taken_for_an_orphan(
    cache: Held, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(3):
        file_without_a_row(cache, number, 20)
    stored: list[Digest] = []
    scan, open_file, settled = cache.store.scan, cache.store.open, cache.evictor.subtract_orphan
    landing: list[asyncio.Task[None]] = []
    too_low: list[int] = []

    def scan_with_a_download() -> Any:
        stored.append(file_without_a_row(cache, 99, 14))  # renamed; its row comes next
        return scan()

    def open_and_index(digest: Digest) -> Any:
        if digest in stored:
            record = BlobRecord(digest, 14 * BLOCK, None, cache.clock())
            landing.append(asyncio.create_task(cache.index.set_blob(record)))
        return open_file(digest)

    def weigh() -> None:
        if landing and cache.evictor.used < on_disk(tmp_path):
            too_low.append(cache.evictor.used)

    def settled_then_weighed(orphan: int) -> None:
        settled(orphan)
        asyncio.get_running_loop().call_soon(weigh)  # when others may look, not within one step

    monkeypatch.setattr(cache.store, "scan", scan_with_a_download)
    monkeypatch.setattr(cache.store, "open", open_and_index)
    monkeypatch.setattr(cache.evictor, "subtract_orphan", settled_then_weighed)
    await cache.content.reconciler.reconcile()
    assert landing
    assert not too_low
    assert cache.evictor.used == on_disk(tmp_path) == 74 * BLOCK
