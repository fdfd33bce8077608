"""Which content is copied to the bucket, without a proxy around it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.app.bucket import read_secret, stores
from proxy.content import bucket_uploads
from proxy.content.bucket_uploads import Uploads
from proxy.content.local_storage import LocalStorage
from proxy.core.names import sha256
from proxy.runtime.supervisor import running_beside
from proxy.settings import Bucket
from proxy.storage.bucket.client import BucketClient
from tests.fakes.clock import Clock
from tests.held import Held, opened
from tests.parts.seaweed import TestBucket
from tests.running import until


@asynccontextmanager
async def copying(
    held: Held, bucket: TestBucket, smallest: int = 0
) -> AsyncIterator[tuple[Uploads, BucketClient]]:
    """Copy what is stored, for as long as the context is open."""
    settings = Bucket.model_validate(bucket.settings())
    client = BucketClient("test", stores(settings, read_secret(settings)), held.counters)
    local_storage = LocalStorage(held.store, held.index, held.counters, held.clock)
    uploads = Uploads(client, local_storage, smallest=smallest, sweep=lambda *_: 0)
    held.content.on_stored.append(uploads.add)
    async with running_beside(uploads.run(), "uploads"):
        yield uploads, client
        await uploads.close()
    held.content.on_stored.remove(uploads.add)


@pytest.fixture
async def held(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock, max_size=1 << 30) as found:
        yield found


async def test_content_below_the_least_size_stays_here(held: Held, bucket: TestBucket) -> None:
    async with copying(held, bucket, smallest=1000) as (uploads, _):
        await held.hold(b"s" * 999)
        large = await held.hold(b"l" * 1000)
        await until(lambda: not uploads.pending)
        assert {*bucket.objects()} == {large}
        assert held.counters.bucket_uploads == 1
        assert held.counters.bucket_uploaded_bytes == 1000


async def test_an_object_that_is_there_is_not_counted_as_written(
    held: Held, bucket: TestBucket
) -> None:
    data = b"there already" * 100
    bucket.put(sha256(data), data, {"public": True})
    async with copying(held, bucket) as (uploads, client):
        digest = await held.hold(data)
        await until(lambda: not uploads.pending)
        assert client.has(digest)
        assert held.counters.bucket_uploads == 0
        assert bucket.card(digest) == {"public": True}, "the first one stays"


async def test_content_that_left_the_disk_is_not_copied(held: Held, bucket: TestBucket) -> None:
    digest = await held.hold(b"gone")
    async with copying(held, bucket) as (uploads, _):
        await held.evictor.discard([digest])
        uploads.add(digest)
        await until(lambda: not uploads.pending)
        assert not bucket.objects()


async def test_a_wrong_object_of_content_that_is_not_held_is_deleted(
    held: Held, bucket: TestBucket
) -> None:
    digest = await held.hold(b"right")
    await held.evictor.discard([digest])
    bucket.put(digest, b"wrong", {})
    async with copying(held, bucket) as (uploads, _):
        uploads.replace(digest)
        await until(lambda: not uploads.pending)
        assert not bucket.objects()


async def test_a_wrong_object_of_held_content_is_written_again(
    held: Held, bucket: TestBucket
) -> None:
    async with copying(held, bucket) as (uploads, _):
        digest = await held.hold(b"right")
        await until(lambda: not uploads.pending)
        bucket.put(digest, b"wrong", {})
        uploads.replace(digest)
        await until(lambda: not uploads.pending)
        assert bucket.read(digest) == b"right"


async def test_too_much_that_waits_is_found_by_the_next_start(
    held: Held, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_uploads, "MAX_WAITING", 3)
    with bucket.server.stopped():
        async with copying(held, bucket) as (uploads, _):
            everything = {await held.hold(bytes([number]) * 100) for number in range(20)}
            assert uploads.pending <= 3 + bucket_uploads.CONCURRENCY
            await asyncio.sleep(0)
            monkeypatch.setattr(bucket_uploads, "GRACE_SECONDS", 0.05)
            monkeypatch.setattr(bucket_uploads, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(bucket_uploads, "MAX_WAITING", 1000)
    async with copying(held, bucket):
        await until(lambda: {*bucket.objects()} >= everything)


async def test_uploads_take_a_bounded_share_of_the_cable(
    held: Held, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_uploads, "RATE", 1_000_000)
    async with copying(held, bucket) as (uploads, _):
        began, most = time.monotonic(), 0
        for number in range(8):
            await held.hold(bytes([number]) * 125_000)
        while uploads.pending:
            most = max(most, len(uploads._running))
            await asyncio.sleep(0.002)
        took = time.monotonic() - began
    assert took > 0.7, "a megabyte, a quarter of it at once"
    assert most <= bucket_uploads.CONCURRENCY
