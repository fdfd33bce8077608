"""The disk fails under the index: it raises only the errors of the contract, and recovers."""

import asyncio
import errno
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import ConfigError, StorageError
from proxy.core.names import Tag
from proxy.core.records import BLOCK, ImageSet, TagHistoryEntry, Usage
from proxy.index.sqlite import SqliteIndex
from tests.fakes.clock import Clock
from tests.index.indexes import (
    LATEST,
    NGINX,
    OTHER,
    all_tags,
    blob,
    digest,
    listing,
    manifest,
    order,
    tagged,
)


class FailingDatabase:
    """Counts the statements of all connections, and fails some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 0
        self.failed: list[str] = []
        self.fails: Callable[[int, str], bool] = lambda *_: False
        self.error = sqlite3.OperationalError("disk I/O error")
        self.error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        connect, disk = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *more: Any) -> Any:
                disk.look(sql)
                return super().execute(sql, *more)

            def executemany(self, sql: str, *more: Any) -> Any:
                disk.look(sql)
                return super().executemany(sql, *more)

        def connected(*args: Any, **more: Any) -> sqlite3.Connection:
            return connect(*args, factory=Connection, **more)

        monkeypatch.setattr(sqlite3, "connect", connected)

    def look(self, sql: str) -> None:
        self.passed += 1
        if self.fails(self.passed, sql):
            self.failed.append(sql)
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDatabase:
    return FailingDatabase(monkeypatch)


class Opened:
    def __init__(self, path: Path, clock: Clock) -> None:
        self.troubles = 0
        self.index = SqliteIndex(path, clock=clock, on_error=self.trouble)

    def trouble(self) -> None:
        self.troubles += 1


@pytest.fixture
async def opened(tmp_path: Path, clock: Clock, disk: FailingDatabase) -> AsyncIterator[Opened]:
    found = Opened(tmp_path / "index", clock)
    async with found.index:
        yield found
        disk.fails = lambda *_: False


Step = Callable[[SqliteIndex], Coroutine[Any, Any, Any]]


async def used(index: SqliteIndex) -> None:
    index.touch(digest(1))
    await index.coldest(None, 10)


IMAGES = ImageSet(
    links={OTHER: [digest(1)]},
    referrers=[(OTHER, digest(1), {"digest": digest(3)})],
    tags={(OTHER, LATEST): tagged(1, 1.0), (OTHER, Tag("2")): tagged(2, 1.0)},
    history={(OTHER, LATEST): [TagHistoryEntry(digest(3), 0.5, 0.6)]},
    notes={"b": 1},
)
STEPS: dict[str, Step] = {
    "set_blob": lambda index: index.set_blob(blob(2)),
    "set_blob of a manifest": lambda index: index.set_blob(manifest(1), listing(2)),
    "link": lambda index: index.link(NGINX, [digest(1), digest(2)]),
    "set_tag": lambda index: index.set_tag(NGINX, LATEST, tagged(1, 1.0)),
    "another tag": lambda index: index.set_tag(NGINX, Tag("old"), tagged(7, 1.0)),
    "referrer": lambda index: index.add_referrer(NGINX, digest(1), {"digest": digest(3)}),
    "blob": lambda index: index.blob(digest(8)),
    "records": lambda index: index.records([digest(8), digest(9)]),
    "children": lambda index: index.children(digest(8)),
    "parents": lambda index: index.parents(digest(2)),
    "linked": lambda index: index.linked(OTHER, digest(1)),
    "holders": lambda index: index.holders(digest(1)),
    "tag": lambda index: index.tag(OTHER, LATEST),
    "tags": lambda index: index.tags(NGINX),
    "history": lambda index: index.history(NGINX, LATEST),
    "referrers": lambda index: index.referrers(NGINX, digest(1)),
    "use": used,
    "set_tag to nothing": lambda index: index.set_tag(NGINX, Tag("old"), None),
    "forget_tag": lambda index: index.forget_tag(NGINX, Tag("gone")),
    "unlink": lambda index: index.unlink(NGINX, [digest(2)]),
    "drop_blobs": lambda index: index.drop_blobs([digest(2)]),
    "note": lambda index: index.note("a"),
    "set_note": lambda index: index.set_note("a", 1),
    "add_images": lambda index: index.add_images(IMAGES),
    "trees": lambda index: index.trees([digest(1)]),
    "weights": lambda index: index.weights([digest(1)]),
    "listings": lambda index: index.listings([digest(2)]),
    "listed_by_others": lambda index: index.listed_by_others([digest(2)], set()),
    "blobs": lambda index: index.blobs(None, 5),
    "incomplete": lambda index: index.incomplete(None, 5),
    "untagged": lambda index: index.untagged(None, 5),
    "linked_to": lambda index: index.linked_to(lambda _: True),
    "repositories": lambda index: index.repositories(),
    "search": lambda index: index.search(None, 5),
    "search for a digest": lambda index: index.search(None, 5, digest(1)),
    "prune": lambda index: index.prune(100.0),
}
RAISING = {
    "use",
    "note",
    "set_note",
    "add_images",
    "weights",
    "listings",
    "listed_by_others",
    "blobs",
    "incomplete",
    "untagged",
    "linked_to",
    "repositories",
    "search",
    "search for a digest",
    "prune",
}


@pytest.mark.parametrize("name", STEPS)
async def test_every_statement_may_fail_in_turn(
    opened: Opened, disk: FailingDatabase, name: str
) -> None:
    index, failing = opened.index, 0
    while True:
        failing += 1
        for other, step in STEPS.items():
            if other == name:
                break
            await step(index)
        index._facts.forget()  # so that the step asks the disk
        await index._facts.threads.written()
        first, troubles = disk.passed, opened.troubles
        disk.failed.clear()
        disk.fails = lambda count, _, first=first: count == first + failing  # noqa: B023
        try:
            await STEPS[name](index)
        except StorageError:
            assert name in RAISING
        disk.fails = lambda *_: False
        if not disk.failed:
            break
        if not any(word in disk.failed[0] for word in ("PRAGMA", "ROLLBACK")):
            assert opened.troubles > troubles, disk.failed
        index._facts.write_again()
        await index._facts.threads.written()
        await STEPS[name](index)
        await index.set_blob(blob(5))
        assert await index.blob(digest(5)) == blob(5)
        assert index.failure is None
    assert failing > 1


async def test_images_that_cannot_all_be_recorded_are_not_recorded_later(
    opened: Opened, disk: FailingDatabase
) -> None:
    index = opened.index
    disk.fails = lambda _, sql: sql.startswith("INSERT OR REPLACE INTO note")
    with pytest.raises(StorageError):
        await index.add_images(IMAGES)
    disk.fails = lambda *_: False
    index._facts.write_again()
    await index._facts.threads.written()
    for tag in (LATEST, Tag("2")):
        assert await index.tag(OTHER, tag) is None
    assert await index.history(OTHER, LATEST) == ()
    assert not await index.linked(OTHER, digest(1))
    assert await index.tags(OTHER) == []


async def test_what_could_not_be_written_is_known_and_written_later(
    opened: Opened, disk: FailingDatabase, tmp_path: Path, clock: Clock
) -> None:
    index = opened.index
    await index.set_blob(blob(3, clock()))
    await index.set_tag(NGINX, Tag("old"), tagged(3, 1.0))
    for asked in (index.blob(digest(1)), index.tag(NGINX, LATEST), index.blob(digest(2))):
        await asked
    disk.fails = lambda _, sql: sql.startswith(("INSERT", "DELETE", "UPDATE"))
    disk.error = sqlite3.OperationalError("database or disk is full")
    disk.error.sqlite_errorcode = sqlite3.SQLITE_FULL
    await index.set_blob(manifest(1, clock()), listing(2))
    await index.set_blob(blob(2, clock()))
    await index.set_blob(blob(2, clock() + 1))
    await index.link(NGINX, [digest(1)])
    await index.set_tag(NGINX, LATEST, tagged(1, 1.0))
    await index.drop_blobs([digest(3)])
    assert await index.blob(digest(1)) == manifest(1, clock())
    assert await index.children(digest(1)) == listing(2)
    assert await index.trees([digest(1)]) == {digest(1): {digest(1): BLOCK, digest(2): BLOCK}}
    assert await index.linked(NGINX, digest(1))
    assert await index.tag(NGINX, LATEST) == tagged(1, 1.0)
    assert await index.blob(digest(3)) is None
    assert await order(index) == [], "what is gone goes no second time"
    assert index.usage() == Usage(2, 2 * BLOCK)
    assert index.failure is not None
    assert "full" in index.failure
    assert opened.troubles == 6
    disk.fails = lambda *_: False
    index._facts.write_again()
    assert await order(index) == [digest(1), digest(2)]
    assert index.failure is None
    second = Opened(tmp_path / "index", clock)
    async with second.index as again:
        assert await order(again) == [digest(1), digest(2)]
        assert [row[1] for row in await all_tags(again)] == [LATEST, "old"]
        assert again.usage() == Usage(2, 2 * BLOCK)
        assert await again.linked(NGINX, digest(1))


async def test_what_failed_never_replaces_what_was_written_after_it(
    opened: Opened, disk: FailingDatabase, tmp_path: Path, clock: Clock
) -> None:
    index = opened.index
    disk.fails = lambda _, sql: sql.startswith("INSERT")
    await index.set_tag(NGINX, LATEST, tagged(1, 1.0))
    await index.set_blob(blob(1))
    disk.fails = lambda *_: False
    await index.set_tag(NGINX, LATEST, tagged(2, 2.0))
    await index.drop_blobs([digest(1)])
    index._facts.write_again()
    second = Opened(tmp_path / "index", clock)
    await index._facts.threads.written()
    async with second.index as again:
        assert await again.tag(NGINX, LATEST) == tagged(2, 2.0)
        assert await again.blob(digest(1)) is None


@pytest.mark.parametrize("table", ["link", "referrer"])
async def test_rows_that_could_not_be_pruned_stay_until_the_next_time(
    opened: Opened, disk: FailingDatabase, clock: Clock, table: str
) -> None:
    index = opened.index
    await index.link(NGINX, [digest(1)])
    await index.add_referrer(NGINX, digest(1), {"digest": digest(2)})
    disk.fails = lambda _, sql: sql.startswith(f"DELETE FROM {table}")
    await index.prune(clock() + 1)
    assert index.failure is not None or table == "link"
    disk.fails = lambda *_: False
    assert await index.linked(NGINX, digest(1)) is (table == "link")
    assert bool(await index.referrers(NGINX, digest(1))) is (table == "referrer")
    index._facts.write_again()
    await index._facts.threads.written()
    assert await index.linked(NGINX, digest(1)) is (table == "link"), "RAM is as the file"
    await index.prune(clock() + 1)
    assert not await index.linked(NGINX, digest(1))
    assert not await index.referrers(NGINX, digest(1))


async def test_usage_is_counted_anew_when_a_record_could_not_be_read(
    tmp_path: Path, clock: Clock, disk: FailingDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.index.sqlite.FLUSH_SECONDS", 0.01)
    async with Opened(tmp_path / "index", clock).index as index:
        await index.set_blob(blob(1))
        await index.set_blob(blob(2))
        index._facts.forget()
        disk.fails = lambda _, sql: "digest IN" in sql
        await index.set_blob(blob(1))
        await index.drop_blobs([digest(2)])
        disk.fails = lambda *_: False
        async with asyncio.timeout(30):
            while index.usage() != Usage(1, BLOCK):
                await asyncio.sleep(0.01)


async def test_what_is_not_written_yet_counts_when_a_damaged_file_was_replaced(
    opened: Opened, disk: FailingDatabase
) -> None:
    index = opened.index
    await index.blob(digest(1))
    disk.fails = lambda _, sql: sql.startswith("INSERT")
    await index.set_blob(blob(1))
    disk.fails = lambda *_: False
    index._facts._replaced()
    await index._facts.threads.written()
    assert index.usage() == Usage(1, BLOCK)
    assert index.peek_blob(digest(1)) == blob(1)


async def test_an_index_that_cannot_be_opened_says_so(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "index").write_text("a file")
    with pytest.raises(ConfigError, match=r"storage.path: .*index cannot be opened"):
        async with Opened(tmp_path / "index", clock).index:
            pass


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "tmp"
    found.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(found))
    return found


def full(root: Path) -> Callable[..., None]:
    mkdir = Path.mkdir

    def made(path: Path, *args: Any, **more: Any) -> None:
        if path == root:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *args, **more)

    return made


async def test_a_temporary_index_is_removed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setattr(Path, "mkdir", full(tmp_path / "index"))
    opened = Opened(tmp_path / "index", clock)
    async with opened.index as index:
        await index.set_tag(NGINX, LATEST, tagged(1, 100.0))
        assert await index.history(NGINX, LATEST)
        [made] = elsewhere.iterdir()
        assert made.stat().st_mode & 0o777 == 0o700
        assert index.failure is not None
        assert opened.troubles == 1
    assert not list(elsewhere.iterdir())


async def test_a_temporary_index_that_cannot_be_opened_either_leaves_nothing(
    tmp_path: Path, clock: Clock, disk: FailingDatabase, elsewhere: Path
) -> None:
    disk.fails = lambda *_: True
    with pytest.raises((ConfigError, StorageError)):
        async with Opened(tmp_path / "index", clock).index:
            pass
    assert not list(elsewhere.iterdir())


async def test_every_statement_may_fail_while_it_is_opened(
    tmp_path: Path, clock: Clock, disk: FailingDatabase, elsewhere: Path
) -> None:
    async with Opened(tmp_path / "index", clock).index as index:
        await index.set_tag(NGINX, LATEST, tagged(1, 1.0))
    failing = 0
    while True:
        failing += 1
        disk.passed, opened = 0, Opened(tmp_path / "index", clock)
        disk.failed.clear()
        disk.fails = lambda count, _: count == failing  # noqa: B023
        async with asyncio.timeout(60), opened.index as index:
            disk.fails = lambda *_: False
            has_failed = bool(disk.failed)
            assert (index.failure is not None) == has_failed == (opened.troubles > 0)
            assert await index.tag(NGINX, LATEST) == (None if has_failed else tagged(1, 1.0))
            await index.set_tag(OTHER, LATEST, tagged(1, 1.0))
        if not has_failed:
            break
    assert failing > 5
    assert not list(elsewhere.iterdir())
