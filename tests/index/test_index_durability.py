"""What has been written survives the end of the process, and what must survives a power cut."""

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Tag
from proxy.index.database import Database
from tests.fakes.clock import Clock
from tests.index.indexes import (
    LATEST,
    NGINX,
    SqliteFiles,
    digest,
    manifest,
    order,
    tagged,
)


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


async def test_notes_and_pins_are_on_the_disk_once_they_are_written(
    tmp_path: Path, clock: Clock, syncs: Syncs
) -> None:
    files = SqliteFiles(tmp_path / "index", clock)
    index = await files.open()
    await index.set_tag(NGINX, LATEST, tagged(1, 1.0))
    await index.set_note("a", 1)
    await index.set_pins(["a"])
    await index.set_tag(NGINX, LATEST, tagged(1, 2.0))
    assert syncs.levels == [1, 2, 2, 1], "FULL for notes and pins, NORMAL for the rest"
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
