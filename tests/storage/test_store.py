"""The guarantees of the store, also across processes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.core.errors import StorageError
from proxy.core.names import Digest, sha256
from proxy.core.records import disk_bytes
from proxy.storage.directory import Directory
from proxy.storage.disk import DiskStore

DATA = bytes(range(256)) * 50
DIGEST = sha256(DATA)
OTHER = sha256(b"never held")


@contextmanager
def opened(path: Path) -> Iterator[DiskStore]:
    """Open the store that lies at a path."""
    directory = Directory(path)
    try:
        yield DiskStore(directory)
    finally:
        directory.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with opened(tmp_path) as found:
        yield found


async def put(store: DiskStore, data: bytes, size: int | None = None) -> Digest:
    spool = await store.spool(sha256(data), size)
    spool.write(data, 0)
    await store.put(sha256(data), spool)
    spool.close()
    return sha256(data)


async def scanned(store: DiskStore) -> dict[Digest, int]:
    return {digest: size async for batch in store.scan() for digest, size, _ in batch}


def read(store: DiskStore, digest: Digest) -> bytes | None:
    file = store.open(digest)
    if file is None:
        return None
    try:
        return file.read(0, file.size)
    finally:
        file.close()


async def test_what_is_put_is_there_also_for_the_next_process(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert read(store, DIGEST) is None
        await put(store, DATA)
        assert read(store, DIGEST) == DATA
    with opened(tmp_path) as store:
        assert read(store, DIGEST) == DATA
        assert await scanned(store) == {DIGEST: len(DATA)}


@pytest.mark.parametrize("size", [None, len(DATA)])
async def test_a_spool_is_written_in_any_order(store: DiskStore, size: int | None) -> None:
    spool = await store.spool(DIGEST, size)
    spool.write(DATA[5000:], 5000)
    spool.write(DATA[:5000], 0)
    await store.put(DIGEST, spool)
    spool.discard()
    spool.close()
    spool.close()
    assert read(store, DIGEST) == DATA, "to discard what has been put does nothing"


async def test_an_empty_blob(store: DiskStore) -> None:
    assert read(store, await put(store, b"", 0)) == b""
    assert await scanned(store) == {sha256(b""): 0}


async def test_nothing_is_held_before_it_is_put_nor_when_it_is_discarded(store: DiskStore) -> None:
    spool = await store.spool(DIGEST, len(DATA))
    spool.write(DATA, 0)
    assert read(store, DIGEST) is None
    assert await scanned(store) == {}
    spool.discard()
    spool.close()
    with pytest.raises(StorageError):
        await store.put(DIGEST, spool)
    assert await scanned(store) == {}


async def test_two_spools_of_one_digest_do_not_meet(store: DiskStore) -> None:
    first, second = [await store.spool(DIGEST, None) for _ in range(2)]
    first.write(b"something else", 0)
    second.write(DATA, 0)
    await store.put(DIGEST, second)
    first.discard()
    first.close()
    second.close()
    assert read(store, DIGEST) == DATA


async def test_what_is_put_twice_is_held_once(store: DiskStore) -> None:
    for _ in range(2):
        await put(store, DATA)
    assert await scanned(store) == {DIGEST: len(DATA)}


async def test_an_open_blob_outlives_its_deletion(store: DiskStore) -> None:
    await put(store, DATA)
    file = store.open(DIGEST)
    assert file is not None
    assert await store.delete([DIGEST, OTHER]) == [], "what is not there needs no deletion"
    assert read(store, DIGEST) is None
    assert await scanned(store) == {}
    assert file.size == len(DATA)
    assert file.read(0, file.size) == DATA
    file.close()
    file.close()


async def test_what_is_condemned_is_held_no_longer_and_is_put_only_after_its_deletion(
    store: DiskStore,
) -> None:
    await put(store, DATA)
    store.begin_deletion([DIGEST])
    assert read(store, DIGEST) is None
    again = asyncio.create_task(put(store, DATA))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not again.done(), "it would be deleted at once"
    await store.delete([DIGEST])
    await again
    assert read(store, DIGEST) == DATA


async def test_a_scan_meets_everything_once(store: DiskStore) -> None:
    held = {await put(store, str(number).encode()) for number in range(1200)}
    found = [entry async for batch in store.scan() for entry in batch]
    assert len(found) == len(held)
    assert {digest for digest, _, _ in found} == held


async def test_a_scan_survives_what_goes_on_meanwhile(store: DiskStore) -> None:
    held = [await put(store, str(number).encode()) for number in range(1200)]
    found = set()
    async for batch in store.scan():
        found |= {digest for digest, _, _ in batch}
        await store.delete(held[:600])
    assert found >= set(held[600:])


async def test_what_has_gone_bad_is_set_aside_and_counted(store: DiskStore) -> None:
    await put(store, DATA)
    assert store.quarantine.bytes == 0
    where = store.quarantine.add(DIGEST, "what was found\n")
    assert Path(where).read_bytes() == DATA
    assert read(store, DIGEST) is None
    assert await scanned(store) == {}
    assert store.quarantine.bytes == disk_bytes(len(DATA)) + disk_bytes(1)
    with pytest.raises(StorageError):
        store.quarantine.add(OTHER, "")
    await put(store, DATA)
    assert store.quarantine.add(DIGEST, "") == where
    assert store.quarantine.bytes == disk_bytes(len(DATA)), "the newer one, and no note"
    store.quarantine.empty()
    assert store.quarantine.bytes == 0
    assert not Path(where).exists()


async def test_what_is_set_aside_is_counted_by_the_next_process(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await put(store, DATA)
        store.quarantine.add(DIGEST, "")
    with opened(tmp_path) as store:
        assert store.quarantine.bytes == disk_bytes(len(DATA))


async def test_free_room_is_told(store: DiskStore) -> None:
    assert store.free() > 0
