"""An index of storage layout 2 is taken over at the first start, whole or not at all."""

import asyncio
import json
import shutil
import signal
import sqlite3
import sys
import tarfile
import zlib
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Digest, Repo, Tag, Target
from proxy.core.records import disk_bytes
from proxy.index.layout2 import TABLES
from proxy.index.sqlite import SqliteIndex
from tests.fakes.clock import Clock
from tests.index.indexes import SqliteFiles, everything, order

DATA = Path(__file__).parents[1] / "data" / "layout2"
ARCHIVES = ("cache", "killed")


@cache
def facts(archive: str) -> Any:
    return json.loads((DATA / f"{archive}.json").read_text())


def unpacked(archive: str, to: Path) -> Path:
    with tarfile.open(DATA / f"{archive}.tar.gz") as opened:
        opened.extractall(to, filter="data")
    return to / "index"


def target(fact: Any) -> Target:
    return Target(fact["upstream"], Repo(fact["repository"]))


async def check(index: SqliteIndex, said: Any) -> None:
    """See that an index knows all facts of an archive."""
    assert index.damaged is None
    assert index.dropped_rows == 0
    await check_tags(index, said["tags"])
    await check_blobs(index, said["blobs"])
    for digest, holders in said["holders"].items():
        assert await index.holders(Digest(digest)) == [target(fact) for fact in holders]
    for fact in said["referrers"]:
        found = await index.referrers(target(fact), Digest(fact["subject"]))
        assert list(found) == fact["told_by_held"]
    assert await index.note("pins") == said["notes"]["pins"]
    for name in ("in use", "verify"):
        assert await index.note(name) == said["notes"][name]


async def check_tags(index: SqliteIndex, said: list[Any]) -> None:
    for fact in said:
        name = target(fact), Tag(fact["tag"])
        record = await index.tag(*name)
        known = record and {
            "media_type": record.descriptor.media_type,
            "digest": record.descriptor.digest,
            "size": record.descriptor.size,
            "checked_at": record.checked_at,
        }
        assert known == fact["now"]
        history = [
            {"digest": one.digest, "first_seen": one.first_seen, "last_seen": one.last_seen}
            for one in await index.history(*name)
        ]
        assert history == fact["history"]
    rows = await everything(lambda after: index.search(after, 3), lambda row: row[:2])
    assert len(rows) == sum(1 for fact in said if fact["now"])


async def check_blobs(index: SqliteIndex, said: list[Any]) -> None:
    for fact in said:
        digest = Digest(fact["digest"])
        record = await index.blob(digest)
        assert record is not None
        assert (record.size, record.media_type, record.is_public, record.used_at) == (
            fact["size"],
            fact["media_type"],
            fact["is_public"],
            pytest.approx(fact["used_at"], abs=1e-7),
        )
        children = await index.children(digest)
        known = children and [{"digest": one.digest, "size": one.size} for one in children]
        assert known == (
            tuple(fact["children"]) or known if fact["children"] == [] else fact["children"]
        )
    assert index.usage().files == len(said)
    assert index.usage().disk_bytes == sum(disk_bytes(fact["size"]) for fact in said)
    used = {fact["digest"]: fact["used_at"] for fact in said}
    found = await order(index, 7)
    assert [used[digest] for digest in found] == sorted(used.values())


@pytest.mark.parametrize("archive", ARCHIVES)
async def test_everything_is_taken_over(tmp_path: Path, clock: Clock, archive: str) -> None:
    path = unpacked(archive, tmp_path)
    files = SqliteFiles(path, clock)
    for _ in range(2):
        await check(await files.open(), facts(archive))
        assert not [name for name in TABLES if (path / name).exists()]
        assert (path / "index.db").stat().st_mode & 0o777 == 0o600
    await files.close()


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize(
    "place",
    [
        "proxy.index.name_rows.set_note",
        "proxy.index.database._sync",
        "proxy.index.layout2.remove",
        "shutil.rmtree",
    ],
)
async def test_a_take_over_that_was_killed_begins_again(
    tmp_path: Path, clock: Clock, archive: str, place: str
) -> None:
    path = unpacked(archive, tmp_path)
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.index.take_over", str(path), place
    )
    assert await killed.wait() == -signal.SIGKILL
    assert (path / "blobs").exists(), "it was not done"
    files = SqliteFiles(path, clock)
    await check(await files.open(), facts(archive))
    await files.close()
    assert {one.name for one in path.iterdir()} <= {"index.db", "listings"}


async def test_a_take_over_without_room_leaves_everything(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unpacked("cache", tmp_path)
    with monkeypatch.context() as patched:
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL

        def fail(*_: Any) -> None:
            raise full

        patched.setattr("proxy.index.name_rows.set_note", fail)
        troubles: list[int] = []
        index = SqliteIndex(path, clock=clock, on_error=lambda: troubles.append(1))
        async with index:
            assert index.failure is not None
        assert troubles == [1]
    assert not (path / "index.db").exists()
    files = SqliteFiles(path, clock)
    await check(await files.open(), facts("cache"))
    await files.close()


def rewrite(path: Path, table: str, change: str, *values: object) -> None:
    with closing(sqlite3.connect(path / table / "cache.db")) as direct, direct:
        assert direct.execute(f"UPDATE Cache SET {change} WHERE rowid = 1", values).rowcount == 1


def packed(value: object) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 0)


BAD_VALUES = {
    "a pickle": ("mode = 4", ()),
    "another file": ("mode = 2, filename = ?", ("/etc/passwd",)),
    "a pickled key": ("raw = 0", ()),
    "no JSON": ("value = ?", (b"\0rubbish",)),
    "no bytes": ("value = 7", ()),
    "nothing": ("value = NULL", ()),
    "JSON of another shape": ("value = ?", (packed([5, [5]]),)),
    "a number": ("value = ?", (packed(5),)),
    "a bomb": ("value = ?", (zlib.compress(b'["' + b"x" * (65 << 20) + b'"]', 9),)),
}


@pytest.mark.parametrize("table", ["tags", "links", "blobs", "referrers"])
@pytest.mark.parametrize("change", BAD_VALUES.values(), ids=list(BAD_VALUES))
async def test_t58_a_row_that_makes_no_sense_is_left_out(
    tmp_path: Path, clock: Clock, table: str, change: tuple[str, tuple[object, ...]]
) -> None:
    path = unpacked("cache", tmp_path)
    with closing(sqlite3.connect(path / table / "cache.db")) as direct:
        (before,) = direct.execute("SELECT count(*) FROM Cache").fetchone()
    rewrite(path, table, change[0], *change[1])
    files = SqliteFiles(path, clock)
    index = await files.open()
    said = facts("cache")
    match table:
        case "blobs":
            assert index.usage().files == before - 1
            await check_tags(index, said["tags"])
        case "tags":
            await check_blobs(index, said["blobs"])
            rows = await index.search(None, 1000)
            assert len(rows) in (before - 1, sum(1 for fact in said["tags"] if fact["now"]) - 1)
        case _:
            await check_tags(index, said["tags"])
            await check_blobs(index, said["blobs"])
    await files.close()


@pytest.mark.parametrize("row", [[10, "x/y", 2.0], [10, "x/y", 2.0, None], [10, "x/y", 2.0, [7]]])
async def test_t44_what_an_old_manifest_lists_may_be_unknown(
    tmp_path: Path, clock: Clock, row: list[object]
) -> None:
    path = unpacked("cache", tmp_path)
    rewrite(path, "blobs", "value = ?", packed(row))
    with closing(sqlite3.connect(path / "blobs" / "cache.db")) as direct:
        (key,) = direct.execute("SELECT key FROM Cache WHERE rowid = 1").fetchone()
    digest = Digest(json.loads(zlib.decompress(key)))
    files = SqliteFiles(path, clock)
    index = await files.open()
    assert await index.children(digest) is None
    assert digest in await index.incomplete(None, 1000)
    await files.close()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("where", ["head", "end", "gone"])
async def test_a_damaged_table_of_the_former_layout_costs_no_other(
    tmp_path: Path, clock: Clock, table: str, where: str
) -> None:
    path = unpacked("cache", tmp_path)
    file = path / table / "cache.db"
    if where == "gone":
        shutil.rmtree(path / table)
    else:
        with file.open("r+b") as opened:
            opened.seek(0 if where == "head" else file.stat().st_size - 8192)
            opened.write(b"\xa5" * 4096)
    files = SqliteFiles(path, clock)
    index = await files.open()
    said = facts("cache")
    if table != "tags":
        await check_tags(index, said["tags"])
    if table != "blobs":
        await check_blobs(index, said["blobs"])
    if table != "notes":
        assert await index.note("pins") == said["notes"]["pins"]
    await files.close()
