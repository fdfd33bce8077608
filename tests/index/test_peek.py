"""Rows that are read in the event loop while the page cache has the file."""

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.index import peek
from proxy.index.database import Database
from proxy.index.peek import Peek
from proxy.index.sqlite import SqliteIndex
from proxy.runtime import page_cache
from tests.fakes.clock import Clock
from tests.index.indexes import (
    LATEST,
    NGINX,
    OTHER,
    SqliteFiles,
    blob,
    digest,
    listing,
    manifest,
    tagged,
)
from tests.index.test_index_ram import Held


@pytest.fixture
async def files(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SqliteFiles]:
    monkeypatch.setattr(page_cache, "share", lambda fd, size: 1.0)
    found = SqliteFiles(tmp_path / "index", clock)
    await fill(await found.open())
    yield found
    await found.close()


async def fill(index: SqliteIndex) -> None:
    await index.set_blob(blob(2))
    await index.set_blob(manifest(1), listing(2))
    await index.link(NGINX, [digest(1)])
    await index.set_tag(NGINX, LATEST, tagged(1, 1.0))


async def reopened(files: SqliteFiles) -> SqliteIndex:
    """Return an index with nothing in RAM that has looked at the page cache."""
    index = await files.open()
    await index._facts.file.look()
    return index


async def test_a_tag_is_read_without_suspending(files: SqliteFiles) -> None:
    index = await reopened(files)
    assert index.peek_tag(NGINX, LATEST) == tagged(1, 1.0)
    assert index.peek_blob(digest(1)) == manifest(1), "that came with the tag"
    assert index.peek_linked(NGINX, digest(1))
    assert index.peek_tag(OTHER, LATEST) is None
    assert not index.peek_linked(OTHER, digest(1))


async def test_a_file_that_is_not_cached_is_left_to_threads(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    monkeypatch.setattr(page_cache, "share", lambda fd, size: 0.9)
    monkeypatch.setattr(page_cache, "fill", lambda fd, size: filled.append(size))
    index = await reopened(files)
    assert index.peek_tag(NGINX, LATEST) is None
    assert await index.tag(NGINX, LATEST) == tagged(1, 1.0)
    await index._facts.file.look()
    assert len(filled) == 2, "the file and its journal are read once"


async def test_what_is_missing_is_read_within_bounds(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, clock, share, filled = await reopened(files), Clock(), 0.6, 0

    def fill(fd: int, size: int) -> None:
        nonlocal share, filled
        share, filled = 1.0, filled + 1

    monkeypatch.setattr(page_cache, "share", lambda fd, size: share)
    monkeypatch.setattr(page_cache, "fill", fill)
    monkeypatch.setattr(peek, "time", SimpleNamespace(monotonic=clock, perf_counter=clock))
    file = index._facts.file
    file._counted_at = clock()
    for expected in (2, 4, 4):
        share = 0.6
        await file.look()
        assert filled == expected, "twice two fifths of the two files are not the whole"
    clock.advance(peek.FILL_SECONDS / 4)
    await file.look()
    assert filled == 6, "by then another quarter may be read"


async def test_what_is_being_written_is_not_read_from_the_file(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = await reopened(files)
    held = Held(monkeypatch)
    writing = asyncio.ensure_future(index.unlink(NGINX, [digest(1)]))
    await asyncio.sleep(0)
    assert index.peek_tag(NGINX, LATEST) == tagged(1, 1.0)
    assert not index.peek_linked(NGINX, digest(1)), "the file still has the link"
    held.gate.set()
    await writing


async def test_work_on_unknown_keys_stops_it(files: SqliteFiles) -> None:
    index = await reopened(files)
    index._facts._writing["everything"] = SimpleNamespace(done=None)  # type: ignore[assignment]
    assert index.peek_tag(NGINX, LATEST) is None
    del index._facts._writing["everything"]
    assert index.peek_tag(NGINX, LATEST) == tagged(1, 1.0)


async def test_a_read_from_the_disk_is_followed_by_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = 7
    used = resource.getrusage
    monkeypatch.setattr(page_cache, "share", lambda fd, size: 1.0)
    monkeypatch.setattr(
        resource,
        "getrusage",
        lambda who: (
            SimpleNamespace(ru_inblock=blocks) if who != resource.RUSAGE_SELF else used(who)
        ),
    )
    monkeypatch.setattr(peek, "_SLOW", -1.0)
    monkeypatch.setattr(peek, "_PAUSE", 1e9)
    database = Database(tmp_path)
    database.open()
    reader = Peek(database)
    await reader.look()

    def work(_: sqlite3.Connection) -> dict[Any, Any]:
        return {"key": 1}

    def waiting(_: sqlite3.Connection) -> dict[Any, Any]:
        nonlocal blocks
        blocks += 1
        return {"key": 1}

    assert reader.read(waiting) == {"key": 1}
    assert reader.read(work) == {}, "the first one waited for the disk"
    reader._resumes_at = 0.0
    blocks += 1
    assert [reader.read(work) for _ in range(2)] == [{"key": 1}] * 2, "other work has waited"
    reader.close()
    assert reader.read(work) == {}
    database.close()


async def test_damage_is_left_to_the_threads(files: SqliteFiles) -> None:
    index = await reopened(files)
    file = index._facts.file

    def damaged(_: sqlite3.Connection) -> dict[Any, Any]:
        raise sqlite3.DatabaseError("malformed")

    assert file.read(damaged) == {}
    assert index.peek_tag(NGINX, LATEST) is None, "it is closed until the next look"
    await file.look()
    assert index.peek_tag(NGINX, LATEST) == tagged(1, 1.0)


async def test_a_replaced_file_is_not_read(files: SqliteFiles) -> None:
    index = await reopened(files)
    index._database.generation += 1
    assert index.peek_tag(NGINX, LATEST) is None
    index._database.generation -= 1
    assert index.peek_tag(NGINX, LATEST) == tagged(1, 1.0)
