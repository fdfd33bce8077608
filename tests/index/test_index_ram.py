"""The RAM in front of the SQLite index: it answers without suspending, and stays small."""

import asyncio
import gc
import itertools
import sqlite3
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Repo, Tag, Target
from proxy.core.records import BLOCK, Usage
from proxy.index import facts, name_rows
from proxy.index.database import Database
from proxy.index.ram_cache import MISSING, RamCache
from proxy.index.sqlite import SqliteIndex
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
    order,
    tagged,
)
from tests.running import until


@pytest.fixture
async def files(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteFiles]:
    found = SqliteFiles(tmp_path / "index", clock)
    yield found
    await found.close()


class Suspended(Exception):
    pass


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine returns, which must not suspend."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise Suspended


def questions(index: SqliteIndex) -> dict[str, Callable[[], Coroutine[Any, Any, Any]]]:
    return {
        "blob": lambda: index.blob(digest(1)),
        "no blob": lambda: index.blob(digest(8)),
        "records": lambda: index.records([digest(1), digest(2), digest(8)]),
        "children": lambda: index.children(digest(1)),
        "no children": lambda: index.children(digest(8)),
        "linked": lambda: index.linked(NGINX, digest(1)),
        "not linked": lambda: index.linked(OTHER, digest(1)),
        "holders": lambda: index.holders(digest(1)),
        "tag": lambda: index.tag(NGINX, LATEST),
        "no tag": lambda: index.tag(OTHER, LATEST),
        "tags": lambda: index.tags(NGINX),
        "history": lambda: index.history(NGINX, LATEST),
        "link": lambda: index.link(NGINX, [digest(1)]),
    }


async def fill(index: SqliteIndex) -> None:
    await index.set_blob(blob(2))
    await index.set_blob(manifest(1), listing(2))
    await index.link(NGINX, [digest(1)])
    await index.set_tag(NGINX, LATEST, tagged(1, 1.0))


async def test_what_was_asked_before_is_answered_without_suspending(files: SqliteFiles) -> None:
    await fill(await files.open())
    index = await files.open()
    for name, ask in questions(index).items():
        if name != "link":
            first = await ask()
        else:
            first = None
        assert at_once(ask()) == first, name


async def test_what_was_written_is_answered_without_suspending(files: SqliteFiles) -> None:
    index = await files.open()
    await fill(index)
    for name in ("blob", "records", "children", "linked", "tag", "link"):
        if name != "records":
            at_once(questions(index)[name]())
    assert index.peek_blob(digest(1)) == manifest(1)
    assert index.peek_linked(NGINX, digest(1))


async def test_a_tag_brings_what_a_request_for_it_needs(files: SqliteFiles) -> None:
    await fill(await files.open())
    index = await files.open()
    await index.tag(NGINX, LATEST)
    assert at_once(index.blob(digest(1))) == manifest(1)
    assert at_once(index.linked(NGINX, digest(1))) is True
    await index.children(digest(1))
    assert at_once(index.blob(digest(2))) is not None


async def test_a_tag_brings_that_also_while_other_rows_are_written(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(await files.open())
    index = await files.open()
    await index.blob(digest(9))
    held = Held(monkeypatch)
    writing = asyncio.ensure_future(index.set_blob(blob(9)))
    await asyncio.sleep(0)
    await index.tag(NGINX, LATEST)
    assert not writing.done()
    assert at_once(index.blob(digest(1))) == manifest(1)
    assert at_once(index.linked(NGINX, digest(1))) is True
    held.gate.set()
    await writing


async def test_a_tag_does_not_bring_what_is_written_meanwhile(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(await files.open())
    index = await files.open()
    read, gate = name_rows.tag, threading.Event()

    def late(*args: Any) -> Any:
        found = read(*args)
        gate.wait(30)
        return found

    monkeypatch.setattr(name_rows, "tag", late)
    asked = asyncio.ensure_future(index.tag(NGINX, LATEST))
    await asyncio.sleep(0)
    await index.unlink(NGINX, [digest(1)])
    gate.set()
    assert await asked == tagged(1, 1.0)
    assert at_once(index.linked(NGINX, digest(1))) is False
    assert at_once(index.blob(digest(1))) == manifest(1)


class Held:
    """Holds the writing thread before each transaction, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        transact = Database.transact

        def held(*args: Any, **more: Any) -> Any:
            self.gate.wait(30)
            return transact(*args, **more)

        monkeypatch.setattr(Database, "transact", held)


async def test_reads_see_writes_that_are_not_committed(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    index = await files.open()
    await index.blob(digest(1))
    await index.tag(NGINX, LATEST)
    held = Held(monkeypatch)
    writes = [
        asyncio.ensure_future(work)
        for work in (
            index.set_blob(manifest(1), listing(2)),
            index.link(NGINX, [digest(1)]),
            index.set_tag(NGINX, LATEST, tagged(1, 1.0)),
        )
    ]
    await asyncio.sleep(0)
    assert at_once(index.blob(digest(1))) == manifest(1)
    assert at_once(index.children(digest(1))) == listing(2)
    assert at_once(index.linked(NGINX, digest(1))) is True
    assert at_once(index.tag(NGINX, LATEST)) == tagged(1, 1.0)
    assert index.usage() == Usage(1, BLOCK)
    asked = [
        asyncio.ensure_future(work)
        for work in (index.history(NGINX, LATEST), index.holders(digest(1)), index.search(None, 5))
    ]
    await asyncio.sleep(0.01)
    assert not any(one.done() for one in [*asked, *writes])
    held.gate.set()
    await asyncio.gather(*writes)
    history, holders, tags = await asyncio.gather(*asked)
    assert [one.digest for one in history] == [digest(1)]
    assert holders == [NGINX]
    assert [row.tag for row in tags] == [LATEST]


async def test_what_is_read_while_it_is_written_is_not_kept(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, tagged(1, 1.0))
    index = await files.open()
    gate, read = threading.Event(), facts.Threads._read

    def held(*args: Any) -> Any:
        found = read(*args)
        gate.wait(30)
        return found

    monkeypatch.setattr(facts.Threads, "_read", held)
    reading = asyncio.ensure_future(index.tag(NGINX, LATEST))
    await asyncio.sleep(0.05)
    forgotten = asyncio.ensure_future(index.forget_tag(NGINX, LATEST))
    await forgotten
    gate.set()
    assert await reading is None, "it was forgotten before this was answered"
    assert index.peek_tag(NGINX, LATEST) is None
    assert await index.tag(NGINX, LATEST) is None


async def test_what_comes_along_with_an_answer_may_be_outdated(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(await files.open())
    index = await files.open()
    gate, read = threading.Event(), facts.Threads._read

    def held(threads: Any, work: Any) -> Any:
        found = read(threads, work)
        if isinstance(found, dict) and ("tag", NGINX, LATEST) in found:
            gate.wait(30)
        return found

    monkeypatch.setattr(facts.Threads, "_read", held)
    reading = asyncio.ensure_future(index.tag(NGINX, LATEST))
    await asyncio.sleep(0.05)
    await index.drop_blobs([digest(1)])
    await index.unlink(NGINX, [digest(1)])
    gate.set()
    assert await reading == tagged(1, 1.0)
    assert await index.blob(digest(1)) is None
    assert not await index.linked(NGINX, digest(1))


async def test_what_is_pruned_is_read_again_only_when_it_is_gone(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    index = await files.open()
    await index.link(NGINX, [digest(1)])
    await index.set_tag(NGINX, LATEST, tagged(1, clock()))
    held = Held(monkeypatch)
    pruning = asyncio.ensure_future(index.prune(clock() + 1))
    async with asyncio.timeout(30):
        while not index._facts._writing:
            await asyncio.sleep(0.001)
    asked = [
        asyncio.ensure_future(work)
        for work in (index.linked(NGINX, digest(1)), index.holders(digest(1)))
    ]
    await asyncio.sleep(0.01)
    assert not any(one.done() for one in asked)
    assert not index.peek_linked(NGINX, digest(1))
    held.gate.set()
    assert await asyncio.gather(*asked) == [False, []]
    assert await pruning == 2
    assert await index.tag(NGINX, LATEST) is None
    assert await index.history(NGINX, LATEST) == ()


async def test_what_is_needed_again_while_it_is_pruned_stays(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    index = await files.open()
    await index.link(NGINX, [digest(1)])
    await index.set_tag(NGINX, LATEST, tagged(2, clock()))
    clock.advance(10)
    page = facts.Facts.page

    async def overtaken(known: facts.Facts, *args: Any) -> Any:
        rows = await page(known, *args)
        if rows and LATEST in rows[0]:
            await index.set_tag(NGINX, LATEST, tagged(2, clock()))
        elif rows:
            await index.set_blob(blob(1))
        return rows

    monkeypatch.setattr(facts.Facts, "page", overtaken)
    assert await index.prune(clock() - 5) == 0
    monkeypatch.undo()
    assert await index.linked(NGINX, digest(1))
    assert await index.tag(NGINX, LATEST) == tagged(2, clock())


async def test_a_write_goes_on_when_its_caller_is_cancelled(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = await files.open()
    held = Held(monkeypatch)
    writing = asyncio.ensure_future(index.set_tag(NGINX, LATEST, tagged(1, 1.0)))
    await until(lambda: bool(index._facts._writing))
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    held.gate.set()
    assert await index.history(NGINX, LATEST) != ()
    index = await files.open()
    assert await index.tag(NGINX, LATEST) == tagged(1, 1.0)


async def test_many_writes_share_a_transaction(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = await files.open()
    sizes: list[int] = []
    transact = Database.transact

    def counted(database: Database, steps: Any, **more: Any) -> Any:
        sizes.append(len(steps))
        return transact(database, steps, **more)

    monkeypatch.setattr(Database, "transact", counted)
    await asyncio.gather(*(index.set_blob(blob(number)) for number in range(200)))
    assert sum(sizes) == 200
    assert len(sizes) < 100


async def test_look_ups_of_one_moment_share_a_switch_of_threads(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = await files.open()
    readers, begun = index._facts.threads._readers, 0
    submit = readers.submit

    def counted(*args: Any) -> Any:
        nonlocal begun
        begun += 1
        return submit(*args)

    monkeypatch.setattr(readers, "submit", counted)
    await asyncio.gather(*(index.tag(NGINX, Tag(f"t{number}")) for number in range(20)))
    assert begun == 1


async def test_a_look_up_that_fails_does_not_fail_others(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(await files.open())
    index = await files.open()
    read = name_rows.tag

    def failing(db: Any, target: Target, tag: Tag) -> Any:
        if tag == "bug":
            raise TypeError("a bug")
        if tag == "disk":
            raise sqlite3.OperationalError("disk I/O error")
        return read(db, target, tag)

    monkeypatch.setattr(name_rows, "tag", failing)
    asked = [asyncio.ensure_future(index.tag(NGINX, Tag(name))) for name in ("bug", "disk", "gone")]
    gone = asyncio.ensure_future(index.tag(NGINX, Tag("left")))
    await asyncio.sleep(0)
    gone.cancel()
    assert await index.tag(NGINX, LATEST) == tagged(1, 1.0)
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(found[0], TypeError)
    assert found[1:] == [None, None]
    assert files.troubles == 1
    files.troubles = 0


async def test_the_ram_does_not_grow_with_what_is_held(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "RAM_WEIGHT", 500)
    index = await files.open()
    repo = itertools.count()

    async def ask(count: int) -> None:
        for number in range(count):
            target = Target("docker.io", Repo(f"a/b{next(repo)}"))
            await index.blob(digest(number))
            await index.tag(target, Tag("x"))
            await index.linked(target, digest(number))

    await ask(600)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await ask(3000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 300_000
    finally:
        tracemalloc.stop()
    assert len(index._facts._ram) <= 1002
    assert not index._facts._reads
    assert not index._facts._writing


async def test_an_index_larger_than_the_ram_is_right(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(facts, "RAM_WEIGHT", 3)
    index = await files.open()
    await asyncio.gather(*(index.set_blob(blob(number, clock())) for number in range(50)))
    await index.drop_blobs([digest(number) for number in range(0, 50, 2)])
    await asyncio.gather(*(index.set_blob(blob(number, clock())) for number in range(0, 50, 10)))
    held = [number for number in range(50) if number % 2 or not number % 10]
    for _ in range(2):
        assert index.usage() == Usage(len(held), len(held) * BLOCK)
        found = await index.records([digest(number) for number in range(50)])
        assert found.keys() == {digest(number) for number in held}
        assert set(await order(index, 7)) == found.keys()
        index = await files.open()


async def test_one_write_that_fails_spoils_no_other(
    files: SqliteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = await files.open()
    held = Held(monkeypatch)
    first = asyncio.ensure_future(index.set_note("a", 1))
    await asyncio.sleep(0)

    def broken(_: sqlite3.Connection) -> None:
        raise LookupError("a bug")

    bug = asyncio.ensure_future(index._facts.write({}, (), broken))
    tags = [index.set_tag(NGINX, Tag(f"v{number}"), tagged(1, 1.0)) for number in range(20)]
    others = asyncio.gather(first, *(index.link(NGINX, [digest(n)]) for n in range(20)), *tags)
    await asyncio.sleep(0.05)
    held.gate.set()
    await others
    with pytest.raises(LookupError, match="a bug"):
        await bug
    index = await files.open()
    assert len(await index.tags(NGINX)) == 20
    assert all([await index.linked(NGINX, digest(number)) for number in range(20)])


def test_the_cache_keeps_what_is_used() -> None:
    cache = RamCache(10)
    for number in range(100):
        cache.put(number, number)
        assert cache.get(0) == 0
        assert len(cache) <= 21
    assert cache.get(1) is MISSING
    cache.put("none", None)
    assert cache.get("none") is None
    cache.pop("none")
    cache.pop("none")
    assert cache.get("none") is MISSING


def test_a_list_weighs_as_much_as_it_holds() -> None:
    cache = RamCache(10)
    cache.put("a", 1)
    cache.put("b", tuple(range(10)))
    cache.put("c", tuple(range(10)))
    assert len(cache) <= 2
