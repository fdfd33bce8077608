"""The contract of every store of bytes by digest: the local disk, and the bucket."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from proxy.app.bucket import read_secret, stores
from proxy.core.errors import BlobUnknown
from proxy.core.names import Digest, sha256
from proxy.runtime.metrics import CacheCounters
from proxy.settings import Bucket
from proxy.storage.bucket.client import PART, BucketClient
from proxy.storage.bucket.object_metadata import ObjectMetadata
from proxy.storage.directory import Directory
from proxy.storage.disk import DiskStore
from tests.fakes.content import blob
from tests.parts.seaweed import TestBucket

DATA = bytes(range(256)) * 50
DIGEST = sha256(DATA)
LARGE = blob(PART + 3_000_000, "large")
NEVER = sha256(b"never held")


class Store(Protocol):
    """The verbs that all stores have."""

    async def put(self, data: bytes) -> Digest: ...
    async def read(self, digest: Digest, start: int = 0) -> bytes | None: ...
    async def delete(self, *digests: Digest) -> None: ...
    def scan(self) -> AsyncIterator[list[tuple[Digest, int]]]: ...
    def reopen(self) -> None: ...
    def close(self) -> None: ...


class Disk:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        self._directory = Directory(self._path)
        self._store = DiskStore(self._directory)

    async def put(self, data: bytes) -> Digest:
        digest = sha256(data)
        spool = await self._store.spool(digest, len(data))
        spool.write(data, 0)
        await self._store.put(digest, spool)
        spool.close()
        return digest

    async def read(self, digest: Digest, start: int = 0) -> bytes | None:
        file = self._store.open(digest)
        if file is None:
            return None
        try:
            return file.read(start, file.size)
        finally:
            file.close()

    async def delete(self, *digests: Digest) -> None:
        assert await self._store.delete([*digests]) == []

    async def scan(self) -> AsyncIterator[list[tuple[Digest, int]]]:
        async for page in self._store.scan():
            yield [(digest, size) for digest, size, _ in page]

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._directory.close()


class InBucket:
    def __init__(self, bucket: TestBucket) -> None:
        self._settings = Bucket.model_validate(bucket.settings())
        self.reopen()

    async def put(self, data: bytes) -> Digest:
        digest = sha256(data)
        if len(data) <= PART:
            await self._client.create(digest, data, ObjectMetadata())
        else:
            await self._client.write(digest, _pieces(data), len(data), ObjectMetadata())
        return digest

    async def read(self, digest: Digest, start: int = 0) -> bytes | None:
        try:
            reader = await self._client.open(digest, start)
        except BlobUnknown:
            return None
        try:
            return await reader.whole()
        finally:
            reader.close()

    async def delete(self, *digests: Digest) -> None:
        await self._client.delete([*digests])

    async def scan(self) -> AsyncIterator[list[tuple[Digest, int]]]:
        async for page in self._client.scan():
            yield [(entry.digest, entry.size) for entry in page]

    def reopen(self) -> None:
        opened = stores(self._settings, read_secret(self._settings))
        self._client = BucketClient("test", opened, CacheCounters())

    def close(self) -> None:
        pass


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


@pytest.fixture(params=["disk", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    disk = request.param == "disk"
    found: Store = Disk(tmp_path) if disk else InBucket(request.getfixturevalue("bucket"))
    yield found
    found.close()


async def scanned(store: Store) -> dict[Digest, int]:
    return {digest: size async for page in store.scan() for digest, size in page}


async def test_what_is_put_is_there_also_for_the_next_process(store: Store) -> None:
    assert await store.read(DIGEST) is None
    assert await scanned(store) == {}
    await store.put(DATA)
    assert await store.read(DIGEST) == DATA
    store.reopen()
    assert await store.read(DIGEST) == DATA
    assert await scanned(store) == {DIGEST: len(DATA)}


@pytest.mark.parametrize("start", [1, 5000, len(DATA) - 1])
async def test_reading_from_an_offset(store: Store, start: int) -> None:
    await store.put(DATA)
    assert await store.read(DIGEST, start) == DATA[start:]


async def test_large_content_is_whole(store: Store) -> None:
    digest = await store.put(LARGE)
    assert await store.read(digest) == LARGE
    assert await store.read(digest, PART + 1) == LARGE[PART + 1 :]
    assert await scanned(store) == {digest: len(LARGE)}


async def test_an_empty_blob(store: Store) -> None:
    assert await store.read(await store.put(b"")) == b""
    assert await scanned(store) == {sha256(b""): 0}


async def test_what_is_put_twice_is_held_once(store: Store) -> None:
    await asyncio.gather(*(store.put(DATA) for _ in range(4)))
    await store.put(DATA)
    assert await scanned(store) == {DIGEST: len(DATA)}
    assert await store.read(DIGEST) == DATA


async def test_what_is_deleted_is_gone_and_can_be_put_again(store: Store) -> None:
    await store.put(DATA)
    other = await store.put(b"other")
    await store.delete(DIGEST, NEVER)
    assert await store.read(DIGEST) is None
    assert await scanned(store) == {other: 5}
    await store.put(DATA)
    assert await store.read(DIGEST) == DATA


async def test_a_scan_meets_everything_once(store: Store) -> None:
    contents = [str(number).encode() for number in range(1200)]
    held: set[Digest] = set()
    for start in range(0, len(contents), 50):
        held |= {*await asyncio.gather(*map(partial(store.put), contents[start : start + 50]))}
    found = [digest async for page in store.scan() for digest, _ in page]
    assert len(found) == len(held)
    assert {*found} == held


async def test_a_scan_survives_deletions(store: Store) -> None:
    held = sorted(await asyncio.gather(*(store.put(str(n).encode()) for n in range(60))))
    found = set()
    async for page in store.scan():
        found |= {digest for digest, _ in page}
        await store.delete(*held[:30])
    assert found >= {*held[30:]}
    assert {*await scanned(store)} == {*held[30:]}
