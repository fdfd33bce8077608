"""Index files that others wrote, restored or damaged: nothing in them runs, leads out, or hangs."""

import asyncio
import json
import os
import pickle
import sqlite3
import stat
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Digest, Tag
from proxy.core.records import BlobRecord, Child, ReferrersRecord
from proxy.index.table import Table
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.index.backends import LATEST, NGINX, OTHER, Reopening, digest, local, record
from tests.running import Start

TABLES = ("tags", "links", "blobs", "referrers", "notes")


@pytest.fixture
async def files(tmp_path: Path, clock: Clock) -> AsyncIterator[Reopening]:
    reopening = Reopening(local, tmp_path / "index", clock)
    yield reopening
    await reopening.close()


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def packed(value: object) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 0)


async def fill(files: Reopening) -> None:
    """Write two rows into each table."""
    index = await files.open()
    for number in (1, 2):
        await index.set_tag(NGINX, Tag(f"v{number}"), record(number, 1.0))
        await index.link(NGINX, [digest(number)])
        await index.set_blob(BlobRecord(digest(number), 5, "x/y", 1.0), [Child(digest(9), 7)])
        entry: dict[str, object] = {"digest": digest(3), "size": 1}
        await index.set_referrers(NGINX, digest(number), ReferrersRecord((entry,), 1.0))
        await index.set_note(f"note {number}", number)
    await files.close()


def spoil(root: Path, table: str, change: str, *values: object) -> None:
    connection = sqlite3.connect(root / "index" / table / "cache.db")
    with connection:
        changed = connection.execute(f"UPDATE Cache SET {change} WHERE rowid = 1", values)
        assert changed.rowcount == 1
    connection.close()


async def use_everything(files: Reopening) -> Any:
    """Read, replace and delete rows in every way that there is."""
    index = await files.open()
    async with asyncio.timeout(20):
        for number in (1, 2):
            await index.tag(NGINX, Tag(f"v{number}"))
            await index.history(NGINX, Tag(f"v{number}"))
            await index.holders(digest(number))
            await index.blob(digest(number))
            await index.referrers(NGINX, digest(number))
            await index.note(f"note {number}")
        await index.ready()
        for number in (1, 2):
            await index.set_tag(NGINX, Tag(f"v{number}"), record(number, 2.0))
            await index.link(OTHER, [digest(number)])
            await index.drop_blobs([digest(number)])
            await index.set_blob(BlobRecord(digest(number), 5, "x/y", 1.0), [Child(digest(9), 7)])
            entry: dict[str, object] = {"digest": digest(4), "size": 1}
            await index.add_referrer(NGINX, digest(number), entry)
            await index.set_note(f"note {number}", number)
        await index.prune(10.0)
    return index


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("where", ["value", "key", "file"])
async def test_t58_no_row_runs_code(
    files: Reopening, tmp_path: Path, table: str, where: str
) -> None:
    await fill(files)
    ran = tmp_path / "ran"
    code = pickle.dumps(Payload(ran))
    match where:
        case "value":
            spoil(tmp_path, table, "mode = 4, value = ?", code)
        case "key":
            spoil(tmp_path, table, "raw = 0, key = ?", code)
        case "file":
            (tmp_path / "code").write_bytes(code)
            name = str(tmp_path / "code")
            spoil(tmp_path, table, "mode = 4, value = NULL, filename = ?", name)
    await use_everything(files)
    await files.close()
    assert not ran.exists()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("mode", [2, 3])
async def test_t58_no_row_leads_out_of_the_index(
    files: Reopening, tmp_path: Path, table: str, mode: int
) -> None:
    await fill(files)
    outside = tmp_path / "outside"
    outside.write_bytes(packed([None, []]))
    spoil(tmp_path, table, "mode = ?, filename = ?", mode, str(outside))
    spoil(tmp_path, table, "value = NULL")
    await use_everything(files)
    await files.close()
    assert outside.exists(), "a row that is replaced takes no file along"


async def test_t58_settings_in_the_file_mean_nothing(files: Reopening, tmp_path: Path) -> None:
    await fill(files)
    for table in TABLES:
        connection = sqlite3.connect(tmp_path / "index" / table / "cache.db")
        with connection:
            rows = [("disk_evil", 1), ("sqlite_user_version", 7), ("get", "x"), ("_disk", "x")]
            connection.executemany("INSERT INTO Settings VALUES (?, ?)", rows)
        connection.close()
    index = await use_everything(files)
    assert await index.note("note 2") == 2


def modes(root: Path) -> dict[str, str]:
    """Return what others than the owner may do with what lies in an index."""
    paths = [root, *root.rglob("*")]
    return {
        str(path): oct(mode)
        for path in paths
        if (mode := stat.S_IMODE(path.stat().st_mode)) != (0o700 if path.is_dir() else 0o600)
    }


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_t58_only_this_user_reads_the_index(
    start: Start, upstream: FakeUpstream, tmp_path: Path, umask: int
) -> None:
    upstream.add("library/app", content.image(1))
    index = tmp_path / "cache" / "index"
    before = os.umask(umask)
    try:
        proxy = await start()
        assert (await proxy.get("/v2/library/app/manifests/latest")).status == 200
        assert list(index.rglob("*-wal")), "journals count too"
        assert not modes(index)
        await proxy.close()
        assert not modes(index)
        for path in [index, *index.rglob("*")]:  # as an older version left it
            path.chmod(0o755 if path.is_dir() else 0o644)
        proxy = await start()
        assert (await proxy.get("/v2/library/app/manifests/latest")).status == 200
        assert not modes(index)
    finally:
        os.umask(before)


HUGE = 1 << 64
BAD_BLOBS: dict[str, object] = {
    "size beyond 64 bits": [HUGE, "x/y", 1.0, []],
    "negative size": [-1, "x/y", 1.0, []],
    "size of another type": ["5", "x/y", 1.0, []],
    "no time": [5, "x/y", "now", []],
    "type with a line end": [5, "x/y\r\nA: b", 1.0, []],
    "type of another type": [5, ["x/y"], 1.0, []],
    "too short": [5],
    "no list": 7,
    "nothing": None,
    "deep": json.loads("[" * 900 + "]" * 900),
}


@pytest.mark.parametrize("row", BAD_BLOBS.values(), ids=list(BAD_BLOBS))
async def test_t59_a_blob_row_that_makes_no_sense_is_deleted_and_counted(
    files: Reopening, tmp_path: Path, row: object
) -> None:
    await fill(files)
    spoil(tmp_path, "blobs", "value = ?", packed(row))
    index = await files.open()
    async with asyncio.timeout(10):
        await index.ready()
    assert index.held(digest(1)) is None
    assert index.held(digest(2)) is not None
    assert index.dropped_rows == 1
    index = await files.open()
    await index.ready()
    assert index.dropped_rows == 0, "it is gone"


@pytest.mark.parametrize("child", [[digest(8), HUGE], ["../../etc", 5], [5], 7, {"a": 1}])
async def test_t44_children_that_make_no_sense_are_not_known(
    files: Reopening, tmp_path: Path, child: object
) -> None:
    await fill(files)
    spoil(tmp_path, "blobs", "value = ?", packed([5, "x/y", 1.0, [[digest(9), 7], child]]))
    index = await files.open()
    async with asyncio.timeout(10):
        await index.ready()
    assert index.held(digest(1)) is not None
    assert index.is_incomplete(digest(1))
    assert index.incomplete() == [digest(1)]


BAD_ROWS: dict[str, list[object]] = {
    "tags": [
        [["x/y", digest(1), HUGE, 1.0], []],
        [["x/y\r\nA: b", digest(1), 5, 1.0], []],
        [["x/y", "sha256:short", 5, 1.0], []],
        [["x/y", digest(1), 5, "then"], []],
        [None, [[digest(1), 1.0]]],
        [5],
        "text",
    ],
    "links": [[["docker.io", ["list"]]], [["docker.io", "../.."]], [5], {"a": 1}],
    "referrers": [[1.0, [{}], []], [1.0, [{"digest": []}], []], [1.0, [5], []], ["x", [], []], 5],
}


@pytest.mark.parametrize(
    ("table", "row"), [(table, row) for table, rows in BAD_ROWS.items() for row in rows]
)
async def test_t59_other_rows_that_make_no_sense_are_deleted(
    files: Reopening, tmp_path: Path, table: str, row: object
) -> None:
    await fill(files)
    spoil(tmp_path, table, "value = ?", packed(row))
    index = await use_everything(files)
    assert index.dropped_rows >= 1
    assert await index.tag(NGINX, Tag("v2")) == record(2, 2.0)
    assert await index.tag(NGINX, Tag("v1")) == record(1, 2.0), "it is learnt anew"
    assert OTHER in await index.holders(digest(1))


def test_a_row_that_unpacks_to_more_than_there_is_room_for_is_not_read(tmp_path: Path) -> None:
    table = Table(tmp_path / "table")
    table.set([("key", [1]), ("other", [2])])
    bomb = zlib.compress(b'["' + b"x" * (65 * 1024 * 1024) + b'"]', 9)
    connection = sqlite3.connect(tmp_path / "table" / "cache.db")
    with connection:
        connection.execute("UPDATE Cache SET value = ? WHERE rowid = 1", (bomb,))
    connection.close()
    assert table.get("key") is None
    assert table.get("other") == [2]
    assert table.dropped == 1
    table.close()


async def test_t44_sizes_out_of_bounds_change_nothing(files: Reopening) -> None:
    """Whoever calls the index with them has an error; what is known stays whole."""
    index = await files.open()
    await index.ready()
    await index.set_blob(BlobRecord(digest(1), 5, None, 1.0))
    for children in ([Child(digest(2), 5), Child(digest(3), HUGE)], [Child(digest(2), -1)]):
        with pytest.raises(ValueError, match="out of bounds"):
            await index.set_blob(BlobRecord(digest(1), 5, "x/y", 2.0), children)
    assert index.usage().files == 1
    assert [held.digest for held in index.coldest()] == [digest(1)]
    await index.set_tag(NGINX, LATEST, record(1, 1.0))
    await index.drop_blobs([Digest(digest(1))])
    assert index.usage().files == 0
