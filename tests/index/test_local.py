import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.errors import ConfigError
from proxy.names import Tag
from proxy.records import BlobRecord, Usage
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
