"""Which objects leave the bucket when it is full, and which stay."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.app.bucket import read_secret, stores
from proxy.content.bucket_eviction import BucketEvictor
from proxy.content.local_storage import LocalStorage
from proxy.core.manifests import OCI_MANIFEST
from proxy.core.names import Digest, sha256
from proxy.settings import Bucket
from proxy.storage.bucket.client import BucketClient
from proxy.storage.bucket.recency import LocalRecency
from tests.fakes.clock import Clock
from tests.held import Held, opened
from tests.parts.seaweed import TestBucket


class Full:
    """A bucket of eight objects of 1000 bytes, the first one used first."""

    def __init__(self, held: Held, bucket: TestBucket, limit: int | None) -> None:
        self.held = held
        self.bucket = bucket
        configured = Bucket.model_validate(bucket.settings())
        opening = stores(configured, read_secret(configured))
        self.client = BucketClient("test", opening, held.counters)
        self.recency = LocalRecency(held.clock)
        local_storage = LocalStorage(held.store, held.index, held.counters, held.clock)
        self.evictor = BucketEvictor(
            self.client, local_storage, self.recency, limit=limit, protected=held._protected
        )
        self.digests: list[Digest] = []

    def fill(self) -> None:
        for number in range(8):
            data = bytes([number]) * 1000
            self.bucket.put(sha256(data), data, {})
            self.digests.append(sha256(data))
            self.held.clock.advance(1)
            self.recency.touch(sha256(data))

    def left(self) -> list[int]:
        there = self.bucket.objects()
        return [number for number, digest in enumerate(self.digests) if digest in there]


@asynccontextmanager
async def full(
    tmp_path: Path, clock: Clock, bucket: TestBucket, limit: int | None = 6000
) -> AsyncIterator[Full]:
    clock.advance(10 * 365 * 86400)  # later than the server's own clock
    async with opened(tmp_path, clock) as held:
        found = Full(held, bucket, limit)
        found.fill()
        yield found


async def test_the_coldest_go_until_there_is_room(
    tmp_path: Path, clock: Clock, bucket: TestBucket
) -> None:
    async with full(tmp_path, clock, bucket) as it:
        it.recency.touch(it.digests[0])
        await it.evictor.enforce()
        assert it.left() == [0, 4, 5, 6, 7]
        assert it.evictor.usage.bytes == 5000
        assert it.held.counters.bucket_evictions == 3
        assert it.held.counters.bucket_evicted_bytes == 3000
        assert it.client.has(it.digests[1]) is False


async def test_within_the_limit_nothing_goes(
    tmp_path: Path, clock: Clock, bucket: TestBucket
) -> None:
    async with full(tmp_path, clock, bucket, limit=8000) as it:
        await it.evictor.enforce()
        assert it.left() == [*range(8)]
        assert it.evictor.usage.objects == 8


async def test_pinned_content_stays(tmp_path: Path, clock: Clock, bucket: TestBucket) -> None:
    async with full(tmp_path, clock, bucket) as it:
        it.held.protected |= {*it.digests[:2]}
        await it.evictor.enforce()
        assert it.left() == [0, 1, 5, 6, 7]


async def test_content_that_clients_read_from_the_disk_is_warm(
    tmp_path: Path, clock: Clock, bucket: TestBucket
) -> None:
    async with full(tmp_path, clock, bucket) as it:
        clock.advance(5)
        await it.held.hold(bytes([0]) * 1000)
        await it.evictor.enforce()
        assert it.left() == [0, 4, 5, 6, 7]


async def test_content_of_an_image_that_clients_read_is_warm(
    tmp_path: Path, clock: Clock, bucket: TestBucket
) -> None:
    async with full(tmp_path, clock, bucket) as it:
        layer = bytes([0]) * 1000
        image = {"schemaVersion": 2, "layers": [{"digest": it.digests[0], "size": len(layer)}]}
        await it.held.hold(layer)
        manifest = await it.held.hold(json.dumps(image).encode(), OCI_MANIFEST)
        for digest in it.digests[1:]:
            it.recency.touch(digest)
            clock.advance(1)
        it.held.index.touch(manifest)
        await it.held.index.uses.flush()
        await it.evictor.enforce()
        assert it.left() == [0, 4, 5, 6, 7]


async def test_a_preview_deletes_nothing_and_says_what_evict_deletes(
    tmp_path: Path, clock: Clock, bucket: TestBucket
) -> None:
    async with full(tmp_path, clock, bucket, limit=None) as it:
        coldest = await it.evictor.coldest(1500)
        assert [one.digest for one in coldest] == it.digests[:2]
        assert it.left() == [*range(8)]
        assert await it.evictor.evict(1500) == (2, 2000)
        assert it.left() == [2, 3, 4, 5, 6, 7]


async def test_who_has_no_lease_does_nothing(
    tmp_path: Path, clock: Clock, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def others() -> AsyncIterator[bool]:
        yield False

    async with full(tmp_path, clock, bucket) as it:
        monkeypatch.setattr(it.recency, "lease", others)
        await it.evictor.enforce()
        assert it.left() == [*range(8)]


async def test_an_object_that_was_never_used_is_as_old_as_it_was_written(
    tmp_path: Path, clock: Clock, bucket: TestBucket
) -> None:
    async with full(tmp_path, clock, bucket, limit=None) as it:
        data = b"written by another machine"
        bucket.put(sha256(data), data, {})
        (first,) = await it.evictor.coldest(1)
        assert first.digest == sha256(data)
