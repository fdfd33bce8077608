"""Last uses of blobs are written late, and are the same as if they were written at once."""

import asyncio
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from proxy.core.records import Child
from proxy.index import Index, use_rows
from tests.fakes.clock import Clock
from tests.index.indexes import (
    FILES,
    Files,
    MemoryFiles,
    blob,
    digest,
    digests,
    listing,
    manifest,
    opened,
    order,
)
from tests.index.test_index_machine import AFTER, BLOBS, IMAGES, INDEXES, Model, below

NUMBERS = [*BLOBS, *IMAGES, *INDEXES]
numbers = st.sampled_from(NUMBERS)
steps = st.one_of(
    st.tuples(st.just("hold"), numbers, st.booleans()),
    st.tuples(st.just("use"), numbers, st.just(True)),
    st.tuples(st.just("use"), st.sampled_from([*IMAGES, *INDEXES]), st.just(True)),
    st.tuples(st.just("drop"), numbers, st.just(True)),
    st.tuples(st.just("reopen"), st.just(0), st.just(True)),
    st.tuples(st.just("coldest"), st.integers(1, 4), st.just(True)),
)


async def image(index: Index, number: int, *blobs: int, at: float) -> None:
    for one in blobs:
        await index.set_blob(blob(one, at))
    await index.set_blob(manifest(number, at), listing(*blobs))


async def last_use(index: Index, number: int) -> float:
    return (await index.last_uses(digests(number)))[digest(number)]


async def test_a_blob_was_used_with_its_image(files: Files, clock: Clock) -> None:
    index = await files.open()
    await image(index, 1, 2, 3, at=clock())
    await index.set_blob(blob(4, clock()))
    clock.advance(5)
    index.touch(digest(1))
    index = await files.open()
    expected = {digest(1): clock()} | dict.fromkeys(digests(2, 3), clock() + AFTER)
    assert await index.last_uses(digests(1, 2, 3, 9)) == expected
    assert await order(index) == digests(4, 1, 2, 3)
    assert {one.digest: one.used_at for _, one in await index.coldest(None, 9)} == (
        expected | {digest(4): clock() - 5}
    )
    async for index in opened(files):
        records = await index.records(digests(1, 2, 3))
        assert {one: record.used_at for one, record in records.items()} == expected


async def test_blobs_that_are_not_cold_are_not_written(tmp_path: Path, clock: Clock) -> None:
    files = MemoryFiles(tmp_path, clock)
    index = await files.open()
    for number in (30, 31):
        await index.set_blob(blob(number, clock()))
    clock.advance(1)
    await image(index, 1, 2, 3, at=clock())
    clock.advance(1)
    index.touch(digest(1))
    rows = partial(index._db.execute, "SELECT used_at FROM blob WHERE digest = ?")
    key = bytes.fromhex(digest(2).partition(":")[2])
    before = rows((key,)).fetchone()
    await index.coldest(None, 2)
    assert rows((key,)).fetchone() == before
    await index.coldest(None, 3)
    assert rows((key,)).fetchone() == (clock() + AFTER,)


async def test_the_warmest_of_several_images_counts(files: Files, clock: Clock) -> None:
    index = await files.open()
    for number in (1, 4, 5):
        await image(index, number, 2, at=clock())
    for number in (4, 1):
        clock.advance(1)
        index.touch(digest(number))
    async for index in opened(files):
        assert await order(index) == digests(5, 4, 1, 2)
        assert await last_use(index, 2) == clock() + AFTER


async def test_what_outlives_its_image_keeps_the_time(files: Files, clock: Clock) -> None:
    index = await files.open()
    await image(index, 1, 2, 3, at=clock())
    await index.set_blob(blob(4, clock() + 1))
    clock.advance(5)
    index.touch(digest(1))
    index = await files.open()
    assert await index.blob(digest(2)) is not None, "in RAM, with the time of its row"
    await index.drop_blobs(digests(1, 3))
    record = await index.blob(digest(2))
    assert record is not None
    assert record.used_at == await last_use(index, 2) == clock() + AFTER
    async for index in opened(files):
        assert await order(index) == digests(4, 2)


async def test_what_a_manifest_lists_no_longer_keeps_the_time(files: Files, clock: Clock) -> None:
    index = await files.open()
    await image(index, 1, 2, 3, at=clock())
    clock.advance(5)
    index.touch(digest(1))
    index = await files.open()
    await index.set_blob(manifest(1, clock() - 4), listing(3))
    async for index in opened(files):
        assert await last_use(index, 2) == await last_use(index, 3) == clock() + AFTER
        assert await order(index) == digests(1, 2, 3)


async def test_an_index_of_images_gives_its_time_to_all_below(files: Files, clock: Clock) -> None:
    index = await files.open()
    for number in (1, 4):
        await image(index, number, 2, number + 10, at=clock())
    await index.set_blob(manifest(5, clock()), listing(1, 4))
    clock.advance(5)
    index.touch(digest(5))
    index = await files.open()
    for number in (1, 4):
        record = await index.blob(digest(number))
        assert record is not None
        assert record.used_at == clock() + AFTER, "of manifests, each record has the time"
    await index.drop_blobs(digests(1))
    await index.drop_blobs(digests(5))
    async for index in opened(files):
        assert await order(index) == digests(4, 2, 11, 14)
        assert await last_use(index, 11) == clock() + AFTER + AFTER


def lazy_and_eager(kind: str, actions: list[Any]) -> None:
    """Do the same to an index and to a model that gives times at once; they must agree."""
    clock, model = Clock(), Model()

    async def run(path: Path) -> None:
        files = FILES[kind](path, clock)
        index = await files.open()
        for name, number, is_new in actions:
            clock.advance(1)
            match name:
                case "hold":
                    record = manifest(number) if below(number) else blob(number)
                    at = clock() if is_new else clock() - 3.5
                    record = type(record)(record.digest, 1, record.media_type, at)
                    await index.set_blob(record, [Child(digest(c), 1) for c in below(number)])
                    model.set_blob(number, record)
                case "use":
                    index.touch(digest(number))
                    model.use(number, clock())
                case "drop":
                    await index.drop_blobs(digests(number))
                    model.held.pop(number, None)
                case "reopen":
                    index = await files.open()
                case _:
                    expected = sorted(one.used_at for one in model.held.values())[:number]
                    page = await index.coldest(None, number)
                    assert [one.used_at for _, one in page] == expected
        index = await files.open()
        used = {one.digest: one.used_at for one in model.held.values()}
        assert await index.last_uses(digests(*NUMBERS)) == used
        found = await order(index, 3)
        assert [used[one] for one in found] == sorted(used.values())
        assert len(found) == len(used)
        records = await index.records(digests(*NUMBERS))
        assert {one: record.used_at for one, record in records.items()} == used
        await files.close()

    with tempfile.TemporaryDirectory(prefix="millpond-uses-") as path:
        asyncio.run(run(Path(path)))


@pytest.mark.parametrize("kind", FILES)
def test_late_times_are_those_that_would_be_written_at_once(kind: str) -> None:
    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(steps, max_size=40))
    def check(actions: list[Any]) -> None:
        lazy_and_eager(kind, actions)

    check()


def test_times_are_written_in_statements_of_limited_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(use_rows, "_PAIRS", 2)
    actions = [("hold", number, True) for number in NUMBERS]
    lazy_and_eager("sqlite", [*actions, *(("use", number, True) for number in NUMBERS)])
