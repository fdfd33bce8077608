import asyncio
import ctypes
import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.core.errors import StorageError
from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK
from proxy.storage import disk
from proxy.storage.directory import Directory
from proxy.storage.disk import DiskStore
from tests.leaks import opened_below

DATA = b"content"
DIGEST = sha256(DATA)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    directory = Directory(tmp_path / "cache")
    yield directory
    directory.close()


@pytest.fixture
def store(directory: Directory) -> DiskStore:
    return DiskStore(directory)


async def put(store: DiskStore, data: bytes) -> Digest:
    digest = sha256(data)
    spool = await store.spool(digest, len(data))
    spool.write(data, 0)
    await store.put(digest, spool)
    spool.close()
    return digest


async def everything(store: DiskStore) -> dict[Digest, int]:
    return {digest: size async for batch in store.scan() for digest, size, _ in batch}


async def test_a_discarded_spool_leaves_no_file(store: DiskStore, tmp_path: Path) -> None:
    spool = await store.spool(DIGEST, None)
    spool.discard()
    spool.close()
    assert not list((tmp_path / "cache/spool").iterdir())


async def test_a_spool_that_nobody_waits_for_any_more_leaves_nothing(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    before = opened_below(tmp_path)

    def slow(*_: object) -> None:
        begun.set()
        go_on.wait()

    monkeypatch.setattr(os, "posix_fallocate", slow)
    making = asyncio.create_task(store.spool(DIGEST, 100))
    await asyncio.to_thread(begun.wait)
    making.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert not list((tmp_path / "cache/spool").iterdir())
    assert opened_below(tmp_path) == before


async def test_a_spool_that_cannot_be_unlinked_takes_no_room(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    spool = await store.spool(DIGEST, 100_000)
    monkeypatch.setattr(os, "unlink", failing)
    spool.discard()
    spool.close()
    [left] = (tmp_path / "cache/spool").iterdir()
    assert left.stat().st_blocks == 0


async def test_long_writes_have_their_blocks_allocated_at_once(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, asked = disk._fallocate, list[tuple[int, int]]()
    assert allocate is not None

    def watched(fd: int, mode: int, offset: ctypes.c_long, length: ctypes.c_long) -> int:
        asked.append((offset.value, length.value))
        return int(allocate(fd, mode, offset, length))

    monkeypatch.setattr(disk, "_fallocate", watched)
    spool = await store.spool(DIGEST, None)
    data = os.urandom(1_000_000)
    spool.write(data, 0)
    spool.write(data[:1000], len(data))
    assert asked == [(0, len(data))]
    status = os.fstat(spool.fd)
    assert status.st_size == len(data) + 1000
    assert status.st_blocks * 512 <= status.st_size + BLOCK
    assert spool.read(0, status.st_size) == data + data[:1000]
    spool.discard()
    spool.close()


@pytest.mark.parametrize("unable", [None, lambda *_: -1], ids=["no such call", "fails"])
async def test_blocks_that_cannot_be_allocated_at_once_are_written_all_the_same(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, unable: object
) -> None:
    monkeypatch.setattr(disk, "_fallocate", unable)
    data = os.urandom(300_000)
    digest = await put(store, data)
    blob = store.open(digest)
    assert blob is not None
    assert blob.read(0, blob.size) == data
    blob.close()


async def test_the_directory_is_an_oci_image_layout(store: DiskStore, tmp_path: Path) -> None:
    digest = await put(store, DATA)
    root = tmp_path / "cache"
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((root / "index.json").read_text())["manifests"] == []
    assert (root / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes() == DATA


async def test_nobody_else_may_look_in(store: DiskStore, tmp_path: Path) -> None:
    digest = await put(store, DATA)
    root = tmp_path / "cache"
    assert root.stat().st_mode & 0o777 == 0o700
    blob = root / "blobs/sha256" / digest.removeprefix("sha256:")
    assert blob.stat().st_mode & 0o777 == 0o600


async def test_t05_leftovers_of_a_killed_process_are_swept(
    store: DiskStore, directory: Directory, tmp_path: Path
) -> None:
    digest = await put(store, DATA)
    (tmp_path / "cache/spool/0-dead").write_bytes(b"half")
    directory.close()
    again = Directory(tmp_path / "cache")
    assert not list((tmp_path / "cache/spool").iterdir())
    assert await everything(DiskStore(again)) == {digest: len(DATA)}
    again.close()


async def test_a_symlink_is_not_followed_out_of_the_store(store: DiskStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link = tmp_path / "cache/blobs/sha256" / DIGEST.removeprefix("sha256:")
    link.symlink_to(secret)
    with pytest.raises(StorageError):
        store.open(DIGEST)
    assert await everything(store) == {}


async def test_t04_a_full_disk_shows_before_a_byte_is_promised(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        await store.spool(DIGEST, 10)
    assert not list((tmp_path / "cache/spool").iterdir())


async def test_the_quarantine_keeps_a_hundred_and_the_oldest_goes_first(
    store: DiskStore, tmp_path: Path
) -> None:
    """Old is what was set aside first, whenever it was fetched."""
    place = tmp_path / "cache/quarantine"
    found = [await put(store, str(number).encode()) for number in range(103)]
    for age, digest in enumerate(found):
        name = digest.removeprefix("sha256:")
        os.utime(tmp_path / "cache/blobs/sha256" / name, (1e9 - age, 1e9 - age))
        where = Path(store.quarantine.add(digest, f"note {age}"))
        assert where.exists(), "what was just set aside"
        await asyncio.sleep(0.01)  # the file system's clock has steps of some milliseconds
        assert len(list(place.glob("*.json"))) <= 100
    names = {digest.removeprefix("sha256:") for digest in found[3:]}
    assert {path.name for path in place.iterdir()} == names | {f"{name}.json" for name in names}
    assert store.quarantine.bytes == 2 * 100 * 4096


async def test_a_blob_is_read_from_the_page_cache_and_never_from_the_disk(
    store: DiskStore,
) -> None:
    data = os.urandom(3_000_000)
    file = store.open(await put(store, data))
    assert file is not None
    assert file.read_cached() == data
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        # The kernel answers no, but begins to read around the last byte, so not at the first one.
        os.preadv(file.fd, [bytearray(1)], len(data) - 1, os.RWF_NOWAIT)
    except BlockingIOError:
        assert file.read_cached() is None
    assert file.read(0, file.size) == data
    file.close()


async def test_an_empty_blob_is_always_in_the_page_cache(store: DiskStore) -> None:
    file = store.open(await put(store, b""))
    assert file is not None
    assert file.read_cached() == b""
    file.close()


async def test_a_file_system_that_does_not_know_its_page_cache_is_not_read_at_once(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.open(await put(store, b"some bytes"))
    assert file is not None

    def unsupported(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", unsupported)
    assert file.read_cached() is None
    file.close()


async def test_a_blob_of_which_a_part_is_missing_is_not_read_at_once(
    store: DiskStore, directory: Directory
) -> None:
    digest = await put(store, DATA)
    blob = store.open(digest)
    assert blob is not None
    os.truncate(directory.root / "blobs" / digest.replace(":", "/"), len(DATA) - 1)
    assert blob.read_cached() is None
    blob.close()


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


async def test_a_blob_whose_directory_cannot_be_synced_is_not_held(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            refuse()
        fsync(fd)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        with pytest.raises(StorageError):
            await put(store, DATA)
    assert store.open(DIGEST) is None
    assert await put(store, DATA) == DIGEST


async def test_a_blob_that_cannot_be_looked_at_stays_open_nowhere(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, DATA)
    before = opened_below(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fstat", refuse)
        with pytest.raises(StorageError):
            store.open(DIGEST)
    assert opened_below(tmp_path) == before


async def test_a_wrong_blob_that_cannot_be_moved_is_deleted(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, DATA)
    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", refuse)
        with pytest.raises(StorageError, match="could only be deleted"):
            store.quarantine.add(DIGEST, "")
    assert store.open(DIGEST) is None
