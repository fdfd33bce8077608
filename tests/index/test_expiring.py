"""Rows that expire: bounded in bytes and age, private, and lost rather than in the way."""

import asyncio
import json
import os
import pickle
import sqlite3
import stat
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Repo, Target
from proxy.index import expiring
from proxy.index.expiring import ExpiringRows

DAY = 86400.0
APP = Target("docker.io", Repo("library/app"))
OTHER = Target("docker.io", Repo("library/app2"))


class Files:
    """Opens the rows of one directory, again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "cache.db"
        self.troubles = 0

    def _trouble(self) -> None:
        self.troubles += 1

    @asynccontextmanager
    async def opened(self, max_bytes: int = expiring.MAX_BYTES) -> AsyncIterator[ExpiringRows]:
        async with ExpiringRows(self.path, on_error=self._trouble, max_bytes=max_bytes) as rows:
            yield rows

    def execute(self, statement: str, *values: object) -> list[Any]:
        connection = sqlite3.connect(self.file)
        with connection:
            found = connection.execute(statement, values).fetchall()
        connection.close()
        return found


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "expiring")


def as_it_is(value: Any) -> Any:
    return value


def number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError("no number")
    return value


async def test_a_row_survives_a_restart(files: Files) -> None:
    async with files.opened() as rows:
        await rows.set(("a", "b"), [1, {"c": None}], DAY)
        assert await rows.get(("a", "b"), as_it_is) == [1, {"c": None}]
    async with files.opened() as rows:
        assert await rows.get(("a", "b"), as_it_is) == [1, {"c": None}]
        assert await rows.get(("a",), as_it_is) is None
    assert not files.troubles


async def test_a_row_expires_and_the_next_write_deletes_it(files: Files) -> None:
    async with files.opened() as rows:
        began = time.time()
        await rows.set(("short",), 1, 0.5)
        await rows.set(("long",), 2, float("inf"))
        assert await rows.get(("short",), number) == 1 or time.time() - began >= 0.5
        async with asyncio.timeout(20):
            while await rows.get(("short",), number) is not None:
                await asyncio.sleep(0.01)
        await rows.set(("new",), 3, DAY)
        assert await rows.get(("long",), number) == 2
    assert files.execute("SELECT count(*) FROM Cache") == [(2,)]


async def test_a_row_without_time_to_live_replaces_and_is_not_kept(files: Files) -> None:
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
        await rows.set(("a",), 2, 0)
        assert await rows.get(("a",), number) is None


async def test_the_least_recently_used_rows_make_room(files: Files) -> None:
    body = os.urandom(20_000).hex()
    async with files.opened(max_bytes=1_000_000) as rows:
        for row in range(80):
            await rows.set((str(row),), f"{row} {body}", DAY)
            await rows.get(("0",), as_it_is)
        kept = [row for row in range(80) if await rows.get((str(row),), as_it_is) is not None]
        assert kept[0] == 0, "it was used all the time"
        assert kept[-1] == 79
        assert kept[1:] == list(range(kept[1], 80)), "the others went in their order"
        assert 20 < len(kept) < 50
    assert files.file.stat().st_size <= 1_000_000
    assert not files.troubles


async def test_large_rows_that_replace_small_ones_stay_in_the_limit(files: Files) -> None:
    """A write of diskcache deletes ten rows at most, which may be too small to make room."""
    async with files.opened(max_bytes=1_000_000) as rows:
        for row in range(2000):
            await rows.set((f"small {row}",), os.urandom(40).hex(), DAY)
        for row in range(30):
            await rows.set((f"large {row}",), os.urandom(60_000).hex(), DAY)
            assert await rows.get((f"large {row}",), as_it_is) is not None
    assert files.file.stat().st_size <= 1_000_000


async def test_a_value_that_is_too_large_is_not_kept_and_neither_is_the_old_one(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiring, "MAX_VALUE_BYTES", 1000)
    async with files.opened() as rows:
        await rows.set(("a",), "x" * 998, DAY)
        assert await rows.get(("a",), as_it_is) == "x" * 998
        await rows.set(("a",), "x" * 999, DAY)
        assert await rows.get(("a",), as_it_is) is None
    assert not files.troubles


async def test_a_row_is_changed_in_one_step(files: Files) -> None:
    async with files.opened() as rows:

        async def add() -> None:
            await rows.update(
                ("sum",), number, lambda old: 1 if old is None else old + 1, ttl=DAY, target=APP
            )

        await asyncio.gather(*(add() for _ in range(50)))
        assert await rows.get(("sum",), number) == 50
        await rows.update(("sum",), number, lambda _: None, ttl=DAY, target=APP)
        assert await rows.get(("sum",), number) == 50, "None changes nothing"


async def test_a_row_is_deleted(files: Files) -> None:
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
        await rows.delete(("a",))
        await rows.delete(("unknown",))
        assert await rows.get(("a",), number) is None
    assert files.execute("SELECT count(*) FROM Cache") == [(0,)]


async def test_the_rows_of_a_repository_are_forgotten_together(files: Files) -> None:
    async with files.opened() as rows:
        for row in range(250):
            await rows.set(("tags", str(row)), 1, DAY, APP)
        await rows.set(("referrers", "a"), 2, DAY, APP)
        await rows.set(("tags", "other"), 3, DAY, OTHER)
        await rows.set(("neither",), 4, DAY)
        await rows.forget(APP)
        assert await rows.get(("referrers", "a"), number) is None
    assert files.execute("SELECT count(*) FROM Cache") == [(2,)]


def packed(value: object) -> bytes:
    return zlib.compress(json.dumps(value).encode())


FOREIGN: dict[str, Callable[[Path], tuple[str, tuple[object, ...]]]] = {
    "another type": lambda _: ("value = ?", (packed("text"),)),
    "not JSON": lambda _: ("value = ?", (zlib.compress(b"{"),)),
    "not compressed": lambda _: ("value = ?", (b"1",)),
    "cut off": lambda _: ("value = ?", (packed([1] * 1000)[:-5],)),
    "text": lambda _: ("value = ?", ("1",)),
    "no value": lambda _: ("value = NULL", ()),
    "too deep": lambda _: ("value = ?", (zlib.compress(b"[" * 100_000),)),
    "too large": lambda _: ("value = ?", (zlib.compress(b'"' + b"x" * 5_000_000 + b'"'),)),
    "another mode": lambda _: ("mode = 7", ()),
    "a pickle": lambda ran: ("mode = 4, value = ?", (pickle.dumps(Payload(ran)),)),
    "a file": lambda ran: ("mode = 2, filename = ?", (str(ran.with_name("outside")),)),
    "a text file": lambda ran: ("mode = 3, filename = ?", (str(ran.with_name("outside")),)),
    "a pickled file": lambda ran: (
        "mode = 4, value = NULL, filename = ?",
        (str(ran.with_name("code")),),
    ),
}


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", FOREIGN)
async def test_t58_t59_a_foreign_row_is_deleted_and_counted(
    files: Files, tmp_path: Path, kind: str
) -> None:
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
        await rows.set(("b",), 2, DAY)
    ran, outside = tmp_path / "ran", tmp_path / "outside"
    outside.write_bytes(packed(1))
    (tmp_path / "code").write_bytes(pickle.dumps(Payload(ran)))
    change, values = FOREIGN[kind](ran)
    files.execute(f"UPDATE Cache SET {change} WHERE rowid = 1", *values)
    async with files.opened() as rows:
        assert await rows.get(("a",), number) is None
        assert files.troubles == 1
        assert await rows.get(("a",), number) is None
        assert files.troubles == 1, "it is deleted"
        assert await rows.get(("b",), number) == 2
        await rows.set(("a",), 3, DAY)
        assert await rows.get(("a",), number) == 3
    assert not ran.exists(), "a row ran code"
    assert outside.exists(), "a row took a file along"


async def test_t58_a_row_that_unpacks_to_more_than_the_limit_is_not_read(files: Files) -> None:
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
    bomb = zlib.compress(b'"' + b"x" * expiring.MAX_VALUE_BYTES + b'"')
    files.execute("UPDATE Cache SET value = ?", bomb)
    async with files.opened() as rows:
        assert await rows.get(("a",), as_it_is) is None
    assert files.troubles == 1


async def test_t58_settings_in_the_file_mean_nothing(files: Files) -> None:
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
    foreign = [("disk_evil", 1), ("sqlite_user_version", 7), ("get", "x"), ("_disk", "x")]
    for name, value in foreign:
        files.execute("INSERT INTO Settings VALUES (?, ?)", name, value)
    files.execute("UPDATE Settings SET value = 1e12 WHERE key = 'size'")
    async with files.opened() as rows:
        assert await rows.get(("a",), number) == 1
        await rows.set(("b",), 2, DAY)
        assert await rows.get(("b",), number) == 2
    assert files.execute("PRAGMA user_version") == [(0,)]
    assert not files.troubles


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_t58_only_this_user_reads_the_file(files: Files, umask: int) -> None:
    def modes() -> set[int]:
        return {stat.S_IMODE(path.stat().st_mode) for path in files.path.iterdir()}

    before = os.umask(umask)
    try:
        for _ in range(2):
            async with files.opened() as rows:
                await rows.set(("a",), 1, DAY)
                assert modes() == {0o600}
                assert len(list(files.path.iterdir())) > 1, "journals count too"
                assert stat.S_IMODE(files.path.stat().st_mode) == 0o700
            files.path.chmod(0o755)
            files.file.chmod(0o644)
    finally:
        os.umask(before)


def _spoilt(file: Path, start: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(data)


DAMAGES: dict[str, Callable[[Files], object]] = {
    "another file": lambda files: files.file.write_bytes(b"no database at all" * 1000),
    "head": lambda files: _spoilt(files.file, 0, b"\xa5" * 100),
    "body": lambda files: _spoilt(files.file, 4096, b"\xa5" * (files.file.stat().st_size - 4096)),
    "a page of rows": lambda files: _spoilt(
        files.file, files.file.stat().st_size // 2 // 4096 * 4096, b"\xa5" * 4096
    ),
    "cut": lambda files: os.truncate(files.file, files.file.stat().st_size // 2),
    "foreign table": lambda files: (
        files.file.unlink(),
        files.execute("CREATE TABLE Cache (something)"),
    ),
    "foreign view": lambda files: (
        files.file.unlink(),
        files.execute("CREATE VIEW Settings AS SELECT 1"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_deleted_and_begun_anew(files: Files, damage: str) -> None:
    async with files.opened() as rows:
        for row in range(200):
            await rows.set((str(row),), os.urandom(1000).hex(), DAY)
    DAMAGES[damage](files)
    async with files.opened() as rows:
        await asyncio.gather(*(rows.get((str(row),), as_it_is) for row in range(200)))
        assert files.troubles == 1
        await rows.set(("new",), 1, DAY)
        assert await rows.get(("new",), number) == 1
    async with files.opened() as rows:
        assert await rows.get(("new",), number) == 1
    assert files.troubles == 1


async def test_an_empty_file_is_as_good_as_none(files: Files) -> None:
    files.path.mkdir()
    files.file.touch()
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
        assert await rows.get(("a",), number) == 1
    assert not files.troubles


async def test_a_disk_that_fails_only_costs_the_rows(files: Files) -> None:
    files.path.write_text("no directory")
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
        await rows.update(("a",), number, lambda _: 2, ttl=DAY, target=APP)
        assert await rows.get(("a",), number) is None
        await rows.forget(APP)
        assert files.troubles == 5
        files.path.unlink()
        await rows.set(("a",), 1, DAY)
        assert await rows.get(("a",), number) == 1, "the disk is well again"
    assert files.troubles == 5


async def test_a_full_disk_takes_no_row_and_still_gives_those_it_has(files: Files) -> None:
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
        locked = sqlite3.connect(files.file, isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")  # no write succeeds, as on a full disk
        assert await rows.get(("a",), number) == 1
        assert not files.troubles
        await rows.set(("b",), 2, DAY)
        assert files.troubles == 1
        assert await rows.get(("b",), number) is None
        locked.execute("ROLLBACK")
        locked.close()
        await rows.set(("b",), 2, DAY)
        assert await rows.get(("b",), number) == 2


async def test_a_path_that_would_be_expanded_is_not_used(tmp_path: Path) -> None:
    files = Files(tmp_path / "$HOME")
    async with files.opened() as rows:
        await rows.set(("a",), 1, DAY)
        assert await rows.get(("a",), number) is None
    assert files.troubles == 3
    assert not files.path.exists()
