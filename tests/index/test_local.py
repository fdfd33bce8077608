import asyncio
import errno
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import ConfigError, StorageError
from proxy.core.names import Tag
from proxy.core.records import BlobRecord, Usage
from proxy.index.local import LocalIndex
from proxy.index.table import Table
from tests.fakes.clock import Clock
from tests.index.backends import LATEST, NGINX, Reopening, digest, local, record


@pytest.fixture
async def files(tmp_path: Path, clock: Clock) -> AsyncIterator[Reopening]:
    reopening = Reopening(local, tmp_path / "index", clock)
    yield reopening
    await reopening.close()


async def test_one_unreadable_row_costs_itself_only(files: Reopening, tmp_path: Path) -> None:
    index = await files.open()
    for number in range(3):
        await index.set_blob(BlobRecord(digest(number), 5, None, float(number)))
        await index.set_tag(NGINX, Tag(f"v{number}"), record(number, 1.0))
    await files.close()
    for table in ("blobs", "tags"):
        with sqlite3.connect(tmp_path / "index" / table / "cache.db") as connection:
            connection.execute("UPDATE Cache SET value = ? WHERE rowid = 2", (b"\x00rubbish",))
        connection.close()
    index = await files.open()
    async with asyncio.timeout(5):
        await index.ready()
    assert index.usage() == Usage(2, 2 * 4096)
    assert await index.tags(NGINX) == ["v0", "v2"]


async def test_an_index_that_cannot_be_opened_says_so(files: Reopening, tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file")
    with pytest.raises(ConfigError, match=r"storage.path: .*index cannot be opened"):
        await files.open()


async def test_an_unreadable_index_is_set_aside_and_begun_anew(
    files: Reopening, tmp_path: Path
) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, record(1, 100.0))
    await files.close()
    (tmp_path / "index/tags/cache.db").write_bytes(b"not a database at all, surely" * 100)
    index = await files.open()
    await index.ready()
    assert await index.tag(NGINX, LATEST) is None
    await index.set_tag(NGINX, LATEST, record(2, 100.0))
    assert list(tmp_path.glob("index/tags.unreadable-*"))


async def test_no_pickle_is_written(files: Reopening, tmp_path: Path) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, record(1, 100.0))
    await index.link(NGINX, [digest(1)])
    await index.set_blob(BlobRecord(digest(1), 1, None, 1.0))
    await files.close()
    for table in ("tags", "links", "blobs"):
        with sqlite3.connect(tmp_path / "index" / table / "cache.db") as connection:
            modes = connection.execute("SELECT DISTINCT mode FROM Cache").fetchall()
        connection.close()
        assert modes == [(1,)], "diskcache's mode 4 is pickle, 1 is raw bytes"


async def test_a_temporary_index_is_removed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    root, mkdir = tmp_path / "index", Path.mkdir

    def full(path: Path, *args: Any, **more: Any) -> None:
        if path == root:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *args, **more)

    monkeypatch.setattr(Path, "mkdir", full)
    async with LocalIndex(root, clock=clock, on_trouble=lambda: None) as index:
        await index.set_tag(NGINX, LATEST, record(1, 100.0))
        assert await index.tag(NGINX, LATEST) == record(1, 100.0)
        [made] = elsewhere.iterdir()
        assert made.stat().st_mode & 0o777 == 0o700
    assert not list(elsewhere.iterdir())


async def test_a_temporary_index_that_cannot_be_opened_either_leaves_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))

    def broken(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite3, "connect", broken)
    with pytest.raises((ConfigError, StorageError)):
        async with LocalIndex(tmp_path / "index", clock=clock, on_trouble=lambda: None):
            pass
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("failures", [1, 3])
async def test_t59_rows_that_could_not_be_read_are_read_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    async with LocalIndex(tmp_path / "index", clock=clock, on_trouble=lambda: None) as index:
        for number in range(3):
            await index.set_blob(BlobRecord(digest(number), 5, None, float(number)))
            await index.set_tag(NGINX, Tag(f"v{number}"), record(number, 1.0))
    batches, left, troubles = Table.batches, [failures], []

    def failing(table: Table, parse: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return batches(table, parse)

    monkeypatch.setattr(Table, "batches", failing)
    monkeypatch.setattr("proxy.runtime.supervisor.FIRST_PAUSE", 0.01)
    index = LocalIndex(tmp_path / "index", clock=clock, on_trouble=lambda: troubles.append(1))
    async with index:
        async with asyncio.timeout(10):
            while index.failure is None and not index.is_ready:
                await asyncio.sleep(0)
            assert index.failure is not None
            await index.ready()
        assert index.failure is None
        assert len(troubles) == failures
        assert index.usage() == Usage(3, 3 * 4096)
        assert await index.tags(NGINX) == ["v0", "v1", "v2"]


async def test_t59_no_question_waits_for_rows_that_are_never_read(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Table, "batches", failing)
    monkeypatch.setattr("proxy.index.local.WAIT_SECONDS", 0.01)
    async with LocalIndex(tmp_path / "index", clock=clock, on_trouble=lambda: None) as index:
        async with asyncio.timeout(10):
            await index.set_tag(NGINX, LATEST, record(1, 1.0))
            assert await index.tags(NGINX) == [LATEST]
            assert await index.repositories() == [NGINX]
            await index.drop_tag(NGINX, LATEST)
            assert await index.tag(NGINX, LATEST) is None
        assert not index.is_ready
