"""Written rows survive the end of the process, and durable ones a power cut."""

import asyncio
import os
import signal
import sqlite3
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Tag
from proxy.core.records import BlobRecord
from proxy.index.database import Database
from proxy.index.sqlite import SqliteIndex
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.index.indexes import (
    LATEST,
    NGINX,
    OTHER,
    SqliteFiles,
    digest,
    listing,
    manifest,
    order,
    tagged,
)
from tests.running import Start


@pytest.mark.parametrize("count", [1, 60])
async def test_every_fact_that_was_written_survives_a_kill(
    tmp_path: Path, clock: Clock, count: int
) -> None:
    path = tmp_path / "index"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.index.writer", str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    written: list[int] = []
    try:
        async with asyncio.timeout(60):
            while len(written) < count:
                line = await process.stdout.readline()
                if line.strip().isdigit():
                    written.append(int(line))
    finally:
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        await process.wait()
    written += [int(line) for line in rest.split(b"\n")[:-1] if line.strip().isdigit()]
    files = SqliteFiles(path, clock)
    index = await files.open()
    assert index.damaged is None
    for number in written:
        listed = await index.children(digest(number)) or ()
        assert [child.digest for child in listed] == [digest(number + 1), digest(number + 2)]
        assert await index.linked(NGINX, digest(number))
        assert await index.tag(NGINX, Tag(f"v{number}")) == tagged(number, 1.0)
        assert len(await index.history(NGINX, Tag(f"v{number}"))) == 1
        assert await index.note(f"n{number}") == number
    held = len(await order(index, 1000))
    assert index.usage().files == held >= len(written)
    await files.close()


class Syncs:
    """Writes down how the file is synced at each commit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.levels: list[int] = []
        transact = Database.transact

        def watched(database: Database, steps: Any, **more: Any) -> Any:
            def look(connection: sqlite3.Connection) -> None:
                self.levels += connection.execute("PRAGMA synchronous").fetchone()

            return transact(database, [*steps, look], **more)[:-1]

        monkeypatch.setattr(Database, "transact", watched)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


async def test_notes_and_loose_files_are_on_the_disk_once_they_are_written(
    tmp_path: Path, clock: Clock, syncs: Syncs
) -> None:
    files = SqliteFiles(tmp_path / "index", clock)
    index = await files.open()
    await index.set_tag(NGINX, LATEST, tagged(1, 1.0))
    await index.set_note("a", 1)
    await index.add_loose_files([digest(1)])
    await index.set_tag(NGINX, LATEST, tagged(1, 2.0))
    assert syncs.levels == [1, 2, 2, 1], "FULL for notes and loose files, NORMAL for the rest"
    await files.close()


async def test_a_new_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def replaced(path: Path, to: Path) -> Path:
        calls.append(f"{path.name} -> {to.name}")
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    files = SqliteFiles(tmp_path / "index", clock)
    await files.open()
    await files.close()
    assert calls == ["sync index.db.new", "index.db.new -> index.db", "sync index"]


async def test_uses_are_written_at_the_end(tmp_path: Path, clock: Clock) -> None:
    files = SqliteFiles(tmp_path / "index", clock)
    index = await files.open()
    for number in (1, 2):
        await index.set_blob(manifest(number, clock()), ())
    clock.advance(1)
    index.touch(digest(1))
    index = await files.open()
    assert await order(index) == [digest(2), digest(1)]
    await files.close()


async def test_uses_are_written_every_few_seconds(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.index.sqlite.FLUSH_SECONDS", 0.01)
    files = SqliteFiles(tmp_path / "index", clock)
    index = await files.open()
    await index.set_blob(manifest(1, clock()), ())
    clock.advance(7)
    index.touch(digest(1))
    async with asyncio.timeout(30):
        while True:
            with sqlite3.connect(tmp_path / "index" / "index.db") as other:
                found = other.execute("SELECT used_at FROM blob").fetchone()
            other.close()
            record = index.peek_blob(digest(1))
            if found == (clock(),) and record is not None and record.used_at == clock():
                break
            await asyncio.sleep(0.01)
    await files.close()


async def test_the_room_of_much_that_was_dropped_is_given_back(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.index.sqlite.FLUSH_SECONDS", 0.01)
    monkeypatch.setattr("proxy.index.database._JOURNAL_PAGES", 20)
    files = SqliteFiles(tmp_path / "index", clock)
    index = await files.open()
    digests = [digest(number) for number in range(3000)]
    await asyncio.gather(*(index.set_blob(BlobRecord(one, 1, None, 1.0)) for one in digests))
    await index.drop_blobs(digests)
    await index.delete_loose_files(digests)
    async with asyncio.timeout(60):
        while (tmp_path / "index" / "index.db").stat().st_size > 400_000:
            await asyncio.sleep(0.01)
    await files.close()


async def test_the_oldest_rows_go_when_the_file_is_too_large(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.index.sqlite.FLUSH_SECONDS", 0.02)
    limit = 1_000_000
    index = SqliteIndex(tmp_path / "index", clock=clock, on_error=lambda: None, max_bytes=limit)
    async with index:
        await index.set_blob(manifest(1, clock()), listing(2))
        await index.link(NGINX, [digest(1)])
        await index.set_tag(NGINX, Tag("first"), tagged(1, clock()))
        revision, asked = index.revision, 0
        async with asyncio.timeout(100):
            while await index.linked(OTHER, digest(10)) or asked < 20_000:
                wanted = [digest(10 + asked + step) for step in range(500)]
                asked += 500
                await index.link(OTHER, wanted)
                clock.advance(100)
                await index.set_tag(OTHER, Tag(f"v{asked}"), tagged(asked, clock()))
            while index.file_bytes > limit:
                await asyncio.sleep(0.01)
        assert await index.blob(digest(1)) is not None, "rows of held content stay"
        assert await index.linked(NGINX, digest(1))
        assert await index.tag(NGINX, Tag("first")) is not None
        last = await index.tag(OTHER, Tag(f"v{asked}"))
        assert last is not None, "what was seen last stays"
        assert index.revision > revision


async def test_tags_of_held_content_go_when_nothing_else_is_left(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.index.sqlite.FLUSH_SECONDS", 0.02)
    limit = 1_000_000
    index = SqliteIndex(tmp_path / "index", clock=clock, on_error=lambda: None, max_bytes=limit)
    async with index:
        await index.set_blob(manifest(1, clock()), ())
        number = 0
        async with asyncio.timeout(100):
            while number < 2000 or await index.history(NGINX, Tag("v1")):
                for _ in range(100):
                    number, at = number + 1, clock() + number
                    await index.set_tag(NGINX, Tag(f"v{number}"), tagged(1, at))
        assert await index.tag(NGINX, Tag(f"v{number}")) is not None
        assert index.peek_tag(NGINX, Tag("v1")) is None


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_t58_only_this_user_reads_the_file(tmp_path: Path, clock: Clock, umask: int) -> None:
    before = os.umask(umask)
    try:
        files = SqliteFiles(tmp_path / "index", clock)
        index = await files.open()
        await index.set_tag(NGINX, LATEST, tagged(1, 1.0))
        await index.tag(NGINX, Tag("other"))
        found = {path.name: path.stat().st_mode & 0o777 for path in files.path.iterdir()}
        assert found == {"index.db": 0o600, "index.db-wal": 0o600, "index.db-shm": 0o600}
        assert files.path.stat().st_mode & 0o777 == 0o700
        await files.close()
        for path in (files.path, *files.path.iterdir()):
            path.chmod(0o755)
        await files.open()
        assert {path.stat().st_mode & 0o777 for path in files.path.iterdir()} == {0o600}
        assert files.path.stat().st_mode & 0o777 == 0o700
        await files.close()
    finally:
        os.umask(before)


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
