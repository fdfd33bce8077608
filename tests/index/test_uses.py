"""The buffer of last uses, the order of eviction, and what replicas learn of uses."""

import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from proxy.core.names import Digest
from proxy.index import use_rows, uses
from proxy.index.sqlite import SqliteIndex
from tests.fakes.clock import Clock
from tests.index.indexes import SqliteFiles, blob, digest, digests, listing, manifest, order
from tests.index.test_index_trouble import FailingDatabase


@pytest.fixture
async def files(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteFiles]:
    found = SqliteFiles(tmp_path / "index", clock)
    yield found
    await found.close()


async def fill(index: SqliteIndex, clock: Clock) -> None:
    """Hold an index of two images with a common layer, and a blob besides, which is cold."""
    for number in (1, 2, 3, 9):
        await index.set_blob(blob(number, clock()))
    await index.set_blob(manifest(10, clock()), listing(1, 2))
    await index.set_blob(manifest(11, clock()), listing(2, 3, 4))
    await index.set_blob(manifest(12, clock()), listing(10, 11))
    clock.advance(5)


async def test_replicas_learn_of_a_use_and_of_all_that_is_held_below(
    files: SqliteFiles, clock: Clock
) -> None:
    index = await files.open()
    await fill(index, clock)
    reported: list[Digest] = []

    def on_used(used: Iterable[Digest]) -> None:
        reported.extend(used)

    index.uses.on_used = on_used
    index.touch(digest(12))
    index.touch(digest(99))
    await index.uses.flush()
    assert sorted(reported) == sorted(digests(12, 10, 11, 1, 2, 3)), "each once"
    reported.clear()
    await order(index)
    await index.drop_blobs(digests(10, 11, 12))
    assert reported == [], "to write a time is no use"


async def test_a_killed_process_leaves_the_order(
    files: SqliteFiles, tmp_path: Path, clock: Clock
) -> None:
    index = await files.open()
    await fill(index, clock)
    index.touch(digest(12))
    await index.uses.flush()
    index.touch(digest(9))
    shutil.copytree(tmp_path / "index", tmp_path / "killed")
    killed = SqliteFiles(tmp_path / "killed", clock)
    found = await order(await killed.open())
    assert found[:2] == digests(9, 12), "the last use was not written"
    assert {*found[2:4]} == {*digests(10, 11)}
    await killed.close()


async def test_times_of_the_coldest_are_written_in_the_background(
    files: SqliteFiles, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "_FRONT", 2)
    index = await files.open()
    await fill(index, clock)
    clock.advance(5)
    index.touch(digest(12))
    await index.uses.flush()

    async def late() -> set[Digest]:
        page = await index._facts.page(use_rows.coldest, None, 99)
        return {one for one, _ in use_rows.late(page)}

    assert await late() == {*digests(1, 2, 3)}
    monkeypatch.setattr(uses, "_ROUNDS", 1)
    await index.uses.settle()
    left = await late()
    assert 0 < len(left) < 3
    monkeypatch.setattr(uses, "_ROUNDS", 4)
    await index.uses.settle()
    assert await late() == set()
    found = await order(index)
    assert found[:2] == digests(9, 12)


async def test_warm_blobs_are_not_evicted_while_the_disk_takes_no_times(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FailingDatabase(monkeypatch)
    troubles: list[None] = []
    index = SqliteIndex(tmp_path, clock=clock, on_error=lambda: troubles.append(None))
    async with index:
        await fill(index, clock)
        index.touch(digest(12))
        await index.uses.flush()
        disk.fails = lambda _, sql: "UPDATE blob" in sql
        assert (await order(index, 2))[:2] == digests(9, 12)
        assert not {*await order(index, 2)} & {*digests(1, 2, 3)}
        assert troubles
        disk.fails = lambda *_: False
        found = await order(index, 2)
        assert found[:2] == digests(9, 12)
        assert {*found[4:]} == {*digests(1, 2, 3)}
