"""Durable data survives a power cut, by the order of calls to the disk."""

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from proxy.index.sqlite import SqliteIndex
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.held import opened
from tests.running import Start

FULL = 2
"""SQLite's ``synchronous`` with which each transaction is on the disk before it ends."""


class Call(NamedTuple):
    """A call that was made: what was synced, or what was renamed to which place."""

    name: str
    inode: int
    to: Path | None = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every fsync and rename from now on, in the order in which they ended."""
    made: list[Call] = []
    fsync, rename = os.fsync, os.rename

    def spied_fsync(fd: int) -> None:
        fsync(fd)
        made.append(Call("fsync", os.fstat(fd).st_ino))

    def spied_rename(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        inode = os.stat(old, dir_fd=src_dir_fd).st_ino
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        directory = Path(os.readlink(f"/proc/self/fd/{dst_dir_fd}"))  # noqa: PTH115
        made.append(Call("rename", inode, directory / new))

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "rename", spied_rename)
    return made


def place(calls: list[Call], matches: Callable[[Call], bool]) -> int:
    """Return the place of the only such call."""
    [found] = [number for number, call in enumerate(calls) if matches(call)]
    return found


def assert_durable(calls: list[Call], path: Path) -> None:
    """Fail unless a file was synced, then renamed, and then its directory was synced."""
    renamed = place(calls, lambda call: call.to == path)
    directory = path.parent.stat().st_ino
    before = [call.inode for call in calls[:renamed] if call.name == "fsync"]
    after = [call.inode for call in calls[renamed:] if call.name == "fsync"]
    assert calls[renamed].inode in before, f"{path} got its name before its bytes were durable"
    assert directory in after, f"the name of {path} is not durable"


async def test_content_is_durable_before_it_has_its_name(
    start: Start, upstream: FakeUpstream, calls: list[Call], tmp_path: Path
) -> None:
    image = content.image(1, [10, 300_000, 3_000_000])
    upstream.add("library/app", image)
    proxy = await start()
    assert (await proxy.get("/v2/library/app/manifests/latest")).status == 200
    for digest, data in image.blobs.items():
        assert (await proxy.get(f"/v2/library/app/blobs/{digest}")).body == data
    await proxy.settled()
    assert proxy.held() == {image.digest, *image.blobs}
    for digest in proxy.held():
        assert_durable(calls, proxy.storage / "blobs" / digest.replace(":", "/"))
    await proxy.close()
    path = tmp_path / "cache" / "index.json"
    renamed = [number for number, call in enumerate(calls) if call.to == path]
    assert renamed, "names are written at the end"
    assert_durable(calls[renamed[-1] - 1 :], path)


async def test_content_counts_as_held_once_it_is_durable(
    tmp_path: Path, clock: Clock, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, clock) as cache:
        set_blob, known = cache.index.set_blob, []

        async def also(*args: Any) -> None:
            known.append(list(calls))
            await set_blob(*args)

        monkeypatch.setattr(cache.index, "set_blob", also)
        digest = await cache.hold(b"content")
        [before] = known
        assert_durable(before, cache.path(digest))


async def test_t63_a_rename_into_quarantine_is_durable(
    tmp_path: Path, clock: Clock, calls: list[Call]
) -> None:
    async with opened(tmp_path, clock) as cache:
        digest = await cache.hold(b"content")
        home, there = cache.path(digest).parent, tmp_path / "quarantine"
        calls.clear()
        assert await cache.content.faults.quarantine(digest, {"reason": "a test"}) is not None
        renamed = place(calls, lambda call: call.to == there / digest.removeprefix("sha256:"))
        synced = {call.inode for call in calls[renamed:] if call.name == "fsync"}
        assert {home.stat().st_ino, there.stat().st_ino} <= synced


class Connection(sqlite3.Connection):
    """Remembers the last ``synchronous`` that was set, and with which one notes were written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.synchronous = FULL  # SQLite's own default
        self.set_trace_callback(self._trace)

    def _trace(self, statement: str) -> None:
        text = statement.casefold().replace(" ", "")
        if text.startswith("pragmasynchronous="):
            value = text.partition("=")[2]
            self.synchronous = FULL if value in ("2", "full", "3", "extra") else 0
        if text.startswith(("insert", "update", "replace", "commit")):
            WRITES.append(self.synchronous)


WRITES: list[int] = []


async def test_notes_survive_a_power_cut(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, factory=Connection, **more)
    )
    async with SqliteIndex(tmp_path / "index", clock=clock, on_error=lambda: None) as index:
        WRITES.clear()
        await index.set_note("a", 1)
        await index.set_note("pins", ["app:1"])
        written = set(WRITES)
    assert written == {FULL}


async def test_a_file_that_cannot_be_looked_at_is_not_taken_for_gone(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, clock) as cache:
        digest = await cache.hold(b"content")
        await cache.content.reconciler.reconcile()
        name = digest.removeprefix("sha256:")
        scandir, open_file = os.scandir, os.open

        class Listing:
            def __init__(self, real: Any) -> None:
                self._real = real

            def __enter__(self) -> Any:
                return (entry for entry in self._real.__enter__() if entry.name != name)

            def __exit__(self, *args: object) -> None:
                self._real.__exit__(*args)

        def broken(path: Any, *args: Any, **more: Any) -> int:
            if path == name:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return open_file(path, *args, **more)

        monkeypatch.setattr(os, "scandir", lambda path: Listing(scandir(path)))
        monkeypatch.setattr(os, "open", broken)
        errors = cache.counters.storage_errors
        await cache.content.reconciler.reconcile()
        monkeypatch.setattr(os, "open", open_file)
        assert await cache.index.blob(digest) is not None
        assert cache.counters.storage_errors > errors
        file = await cache.content.open(digest)
        assert file is not None, "the disk has recovered"
        file.close()
