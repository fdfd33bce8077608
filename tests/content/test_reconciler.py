"""Index and store are made to agree: rows without files, files without rows, and races."""

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.content import reconciler
from proxy.core.errors import StorageError
from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK, Descriptor
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.held import Held, opened

IMAGE = content.image(1)


INDEX = content.multi_platform(2)


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


def lay(cache: Held, data: bytes, name: str | None = None) -> Digest:
    """Put a file into the store of which no row knows."""
    digest = name or sha256(data)
    cache.path(digest).write_bytes(data)
    return Digest(digest)


def set_aside(cache: Held) -> set[str]:
    return {path.name for path in (cache.root / "quarantine").iterdir()}


async def test_rows_whose_file_is_gone_are_dropped_and_the_others_stay(
    tmp_path: Path, clock: Clock
) -> None:
    ghost = Digest(IMAGE.layers[0])
    async with opened(tmp_path, clock) as cache:
        await cache.image("app:1", IMAGE)
        cache.path(ghost).unlink()
    async with opened(tmp_path, clock) as cache:
        assert await cache.index.blob(ghost) is not None
        await cache.content.reconciler.reconcile()
        assert await cache.index.blob(ghost) is None
        assert cache.index.usage().files == len(IMAGE.blobs)
        cache.path(IMAGE.config).unlink()
        await cache.content.reconciler.reconcile()
        assert await cache.index.blob(Digest(IMAGE.config)) is None, "also when it runs for long"
        assert cache.index.usage().files == len(IMAGE.blobs) - 1
    async with opened(tmp_path, clock) as cache:
        assert cache.index.usage().files == len(IMAGE.blobs) - 1


async def test_t05_files_without_a_row_are_adopted_with_what_they_list(cache: Held) -> None:
    for data in (*IMAGE.blobs.values(), IMAGE.manifest, INDEX.manifest):
        path = cache.path(lay(cache, data))
        os.utime(path, (1_600_000_000, 1_600_000_000))
    await cache.content.reconciler.reconcile()
    for digest, size in {key: len(data) for key, data in IMAGE.blobs.items()}.items():
        record = await cache.index.blob(Digest(digest))
        assert record is not None
        assert (record.size, record.media_type) == (size, None)
        assert record.used_at >= 1_600_000_000 - 1
    for thing, below in ((IMAGE, set(IMAGE.blobs)), (INDEX, {c.digest for c in INDEX.children})):
        record = await cache.index.blob(Digest(thing.digest))
        assert record is not None
        assert record.media_type == thing.media_type
        assert {child.digest for child in await cache.index.children(record.digest)} == below
    assert cache.evictor.used == (len(IMAGE.blobs) + 2) * BLOCK


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"{}", b'{"a": 1}', b"[]", b"\x1f\x8b" + bytes(5000), b'{"manifests": 7}'],
)
async def test_content_that_is_not_a_manifest_is_adopted_as_a_blob(
    cache: Held, data: bytes
) -> None:
    digest = lay(cache, data)
    await cache.content.reconciler.reconcile()
    record = await cache.index.blob(digest)
    assert record is not None
    assert (record.media_type, record.size) == (None, len(data))


async def test_a_manifest_without_a_type_is_adopted_by_its_shape(cache: Held) -> None:
    plain = content.untyped(1)
    digest = lay(cache, plain.manifest)
    await cache.content.reconciler.reconcile()
    record = await cache.index.blob(digest)
    assert record is not None
    assert record.media_type == content.OCI_MANIFEST


async def test_files_with_wrong_content_are_set_aside(cache: Held) -> None:
    bad = lay(cache, b"something else", sha256(b"what it says"))
    empty = lay(cache, b"", sha256(b"not empty"))
    good = lay(cache, b"good")
    stranger = cache.root / "blobs" / "sha256" / "notes.txt"
    stranger.write_text("by hand")
    await cache.content.reconciler.reconcile()
    assert await cache.on_disk() == {good}
    names = {digest.removeprefix("sha256:") for digest in (bad, empty)}
    assert set_aside(cache) == names | {f"{name}.json" for name in names}
    note = json.loads((cache.root / "quarantine" / f"{bad[7:]}.json").read_text())
    assert (note["digest"], note["reason"]) == (bad, "its bytes are not its name")
    assert cache.counters.corrupted == 2
    assert stranger.read_text() == "by hand", "what has no digest for a name is none of ours"


async def test_a_file_that_cannot_be_read_stops_nothing(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [lay(cache, str(number).encode()) for number in range(10)]
    pread, inode = os.pread, cache.path(digests[4]).stat().st_ino

    def fails(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", fails)
    await cache.content.reconciler.reconcile()
    assert {digest for digest in digests if await cache.index.blob(digest)} == {*digests} - {
        digests[4]
    }
    assert digests[4].removeprefix("sha256:") in set_aside(cache)
    assert cache.evictor.used == 9 * BLOCK + 2 * BLOCK


async def test_a_row_whose_file_has_become_a_link_stops_nothing(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock) as cache:
        await cache.image("app:1", IMAGE)
        (tmp_path / "secret").write_text("secret")
        cache.path(IMAGE.layers[0]).unlink()
        cache.path(IMAGE.layers[0]).symlink_to(tmp_path / "secret")
        cache.path(IMAGE.layers[1]).unlink()
        orphan = lay(cache, b"orphan")
    async with opened(tmp_path, clock) as cache:
        await cache.content.reconciler.reconcile()
        assert await cache.index.blob(orphan) is not None
        assert await cache.index.blob(Digest(IMAGE.layers[1])) is None


async def test_content_that_arrives_during_the_scan_stays(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download renames its file into the store a moment before the index knows of it."""
    orphans = [lay(cache, str(number).encode()) for number in range(3)]
    set_blob, came = cache.index.set_blob, set[str]()

    async def also(record: object, children: object = ()) -> None:
        await set_blob(record, children)  # type: ignore[arg-type]
        if not came:
            came.add("")
            came.add(await cache.blocks(1))
            await cache.evictor.evict(1)

    monkeypatch.setattr(cache.index, "set_blob", also)
    await cache.content.reconciler.reconcile()
    held = {d for d in await cache.on_disk() if await cache.index.blob(Digest(d))}
    assert held == await cache.on_disk()
    assert len(held) >= len(orphans)
    assert cache.evictor.used == cache.index.usage().disk_bytes
    assert not set_aside(cache)


async def test_content_fetched_again_while_its_bad_file_is_hashed_is_held(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lay(cache, b"wrong", sha256(b"right"))
    prove, downloads = reconciler.prove, list[asyncio.Task[Digest]]()

    async def slow(*args: Any) -> Any:
        found = await prove(*args)
        downloads.append(asyncio.create_task(cache.hold(b"right")))
        await asyncio.wait(downloads, timeout=0.5)  # it must wait for the bad file
        return found

    monkeypatch.setattr(reconciler, "prove", slow)
    await cache.content.reconciler.reconcile()
    await asyncio.gather(*downloads)
    assert await cache.index.blob(digest) is not None
    assert cache.path(digest).read_bytes() == b"right"
    [quarantined] = [path for path in (cache.root / "quarantine").iterdir() if not path.suffix]
    assert quarantined.read_bytes() == b"wrong"
    assert cache.evictor.used == BLOCK + cache.store.quarantine.bytes


async def test_a_file_that_was_not_adopted_is_counted_once_when_fetched_again(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"some bytes"
    lay(cache, data)

    def fails(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fails)
        await cache.content.reconciler.reconcile()
    assert cache.evictor.used == BLOCK
    await cache.hold(data)
    assert cache.evictor.used == BLOCK, "the new file replaces the old one"
    await cache.evictor.evict(BLOCK)
    assert cache.evictor.used == 0


async def test_content_that_lands_has_a_row_before_it_can_be_taken_for_an_orphan(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"the right bytes"
    digest = sha256(data)
    visible, go_on, proven = asyncio.Event(), asyncio.Event(), list[Digest]()
    put = cache.store.put

    async def put_then_wait(digest: Digest, spool: Any) -> None:
        await put(digest, spool)
        visible.set()
        await go_on.wait()

    async def prove(file: Any, digest: Digest) -> None:
        proven.append(digest)

    monkeypatch.setattr(reconciler, "prove", prove)
    monkeypatch.setattr(cache.store, "put", put_then_wait)
    holding = asyncio.create_task(cache.hold(data))
    await visible.wait()
    finding = asyncio.create_task(cache.content.find(digest))
    for _ in range(20):  # steps of the loop, in which the file without a row could be taken
        await asyncio.sleep(0)
    go_on.set()
    await holding
    record = await finding
    assert record is not None
    assert record.size == len(data)
    assert proven == []
    assert set_aside(cache) == set()
    assert await cache.on_disk() == {digest}
    assert cache.evictor.used == BLOCK


async def test_a_file_that_vanishes_before_it_is_adopted_counts_no_more(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lay(cache, b"gone in a moment")
    counted: list[int] = []
    found = cache.evictor.set_orphans

    def vanish(orphans: int) -> None:
        found(orphans)
        counted.append(cache.evictor.used)
        cache.path(digest).unlink()

    monkeypatch.setattr(cache.evictor, "set_orphans", vanish)
    await cache.content.reconciler.reconcile()
    assert counted == [BLOCK]
    assert cache.evictor.used == 0


async def test_a_file_that_could_not_be_opened_is_adopted_by_the_next_comparison(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lay(cache, b"not readable at first")

    def refuse(digest: Digest) -> None:
        raise StorageError(f"{digest} cannot be opened")

    with monkeypatch.context() as refusing:
        refusing.setattr(cache.store, "open", refuse)
        await cache.content.reconciler.reconcile()
    assert await cache.index.blob(digest) is None
    assert cache.evictor.used == BLOCK, "it takes its room all the same"
    await cache.content.reconciler.reconcile()
    assert await cache.index.blob(digest) is not None
    assert cache.evictor.used == BLOCK


async def test_a_file_whose_row_was_lost_is_found_before_all_files_are_read_again(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.content.reconciler.reconcile()
    digest = lay(cache, b"its row was in the damaged file")
    assert await cache.content.find(digest) is None, "all files are known to have a row"
    monkeypatch.setattr(type(cache.index), "damaged", "where the damaged file lies")
    found: list[bool] = []
    scan = cache.store.scan

    async def scan_in_the_end() -> Any:
        found.append(await cache.content.find(digest) is not None)
        async for batch in scan():
            yield batch

    monkeypatch.setattr(cache.store, "scan", scan_in_the_end)
    await cache.content.reconciler.reconcile()
    assert found == [True]
    assert cache.evictor.used == BLOCK


async def test_an_orphan_is_counted_once_while_it_is_adopted(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lay(cache, b"an orphan")
    counted = []
    set_blob = cache.index.set_blob

    async def watched(*row: Any) -> None:
        setting = asyncio.create_task(set_blob(*row))
        await asyncio.sleep(0)
        counted.append(cache.evictor.used)
        await setting

    monkeypatch.setattr(cache.index, "set_blob", watched)
    await cache.content.reconciler.reconcile()
    assert await cache.index.blob(digest) is not None
    assert counted == [BLOCK]


async def test_a_second_copy_counts_until_its_readers_have_left(cache: Held) -> None:
    data = b"{}".ljust(BLOCK)
    digest = await cache.hold(data)
    room = await cache.evictor.reserve_body("docker.io", len(data))
    await room.grow(len(data))
    spool = await cache.store.spool(digest, None)
    spool.write(data, 0)
    descriptor = Descriptor(content.OCI_MANIFEST, digest, len(data))
    await cache.content.adopt(room, spool, descriptor)
    assert cache.evictor.used == 2 * BLOCK, "the file is there already, so the spool is no blob"
    spool.discard()
    spool.close()
    room.release()
    assert cache.evictor.used == BLOCK


async def test_content_that_arrives_during_the_scan_is_no_orphan(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"on its way"
    lay(cache, data)
    scan, found = cache.store.scan, cache.evictor.set_orphans
    counted = []

    async def then_hold() -> AsyncIterator[Any]:
        async for batch in scan():
            yield batch
        monkeypatch.setattr(cache.store, "scan", scan)
        await cache.hold(data)

    def watched(orphans: int) -> None:
        found(orphans)
        counted.append(cache.evictor.used)

    monkeypatch.setattr(cache.store, "scan", then_hold)
    monkeypatch.setattr(cache.evictor, "set_orphans", watched)
    await cache.content.reconciler.reconcile()
    assert set(counted) == {BLOCK}
