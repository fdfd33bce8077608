"""The contract of every source. A new one is added to the list."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from proxy.app.bucket import read_secret, stores
from proxy.content.downloads import Downloads
from proxy.content.fetching import Fetch, SourcesBody
from proxy.core.errors import ContentMismatch, NotFound, UpstreamFailure, UpstreamUnavailable
from proxy.core.names import Digest, Repo, Target, sha256
from proxy.core.sources import Body, Piece, Place, Priority, Source
from proxy.runtime.metrics import CacheCounters
from proxy.settings import Bucket as BucketSettings
from proxy.storage.bucket.client import BucketClient, ObjectReader
from proxy.storage.bucket.recency import LocalRecency
from proxy.storage.bucket.source import BucketSource
from proxy.storage.fallback import FallbackDirectory
from tests.fakes import content, faults
from tests.fakes.clock import Clock
from tests.fakes.layout import blob_file, write_layout
from tests.fakes.upstream import FakeUpstream
from tests.fleet.together import acquainted, fleet, starting
from tests.held import opened
from tests.parts import redis
from tests.parts.seaweed import TestBucket
from tests.running import Start, until

SIZE = 3_000_000
IMAGE = content.image(1, layers=(SIZE,))
OTHERS = content.image(2, layers=(1000,))
LAYER = Digest(IMAGE.layers[0])
DATA = IMAGE.blobs[LAYER]
TARGET = Target("docker.io", Repo("library/app"))
NOWHERE = sha256(b"nobody has this")


class Stage:
    """A source, and what can happen to the blob that it has."""

    source: Source
    knows_sizes = True

    def break_at(self, offset: int) -> None:
        """Let bodies end too early."""
        raise NotImplementedError

    def spoil(self) -> None:
        """Give a wrong byte."""
        raise NotImplementedError


class Registry(Stage):
    def __init__(self, source: Source, fake: FakeUpstream) -> None:
        self.source = source
        self.fake = fake

    def break_at(self, offset: int) -> None:
        self.fake.fault(faults.truncate(offset), kind="blob", times=1)
        self.fake.fault(faults.hang_up(), kind="blob", after=1)

    def spoil(self) -> None:
        self.fake.fault(faults.corrupt(SIZE // 2), kind="blob")


class WithoutLengths(Registry):
    knows_sizes = False

    def __init__(self, source: Source, fake: FakeUpstream) -> None:
        super().__init__(source, fake)
        fake.fault(faults.chunked(), kind="blob")


class Directory(Stage):
    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_layout(root, {"docker.io/library/app:latest": IMAGE, "docker.io/org/else:1": OTHERS})
        self.source = FallbackDirectory(root)
        self.file = blob_file(root, LAYER)
        self._monkeypatch = monkeypatch

    def break_at(self, offset: int) -> None:
        pread, inode = os.pread, self.file.stat().st_ino

        def failing(fd: int, size: int, start: int) -> bytes:
            if os.fstat(fd).st_ino != inode:
                return pread(fd, size, start)
            if start >= offset:
                raise OSError(5, "Input/output error")
            return pread(fd, min(size, offset - start), start)

        self._monkeypatch.setattr(os, "pread", failing)

    def spoil(self) -> None:
        with self.file.open("r+b") as file:
            file.seek(SIZE // 2)
            file.write(bytes([DATA[SIZE // 2] ^ 0xFF]))


class Holder(Stage):
    """A replica that holds the blob."""

    def __init__(self, source: Source, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source = source
        self.file = file
        self._monkeypatch = monkeypatch

    def break_at(self, offset: int) -> None:
        sendfile, inode = os.sendfile, self.file.stat().st_ino

        def failing(socket: int, fd: int, start: int, count: int) -> int:
            if os.fstat(fd).st_ino != inode:
                return sendfile(socket, fd, start, count)
            if start >= offset:
                raise OSError(5, "Input/output error")
            return sendfile(socket, fd, start, min(count, offset - start))

        self._monkeypatch.setattr(os, "sendfile", failing)

    def spoil(self) -> None:
        with self.file.open("r+b") as file:
            file.seek(SIZE // 2)
            file.write(bytes([DATA[SIZE // 2] ^ 0xFF]))


class Bucket(Stage):
    """A bucket. What it does not say of its objects, the registry would be asked about."""

    def __init__(self, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bucket = bucket
        self._monkeypatch = monkeypatch
        for image, repo in ((IMAGE, "library/app"), (OTHERS, "org/else")):
            for digest, data in image.blobs.items():
                bucket.put(digest, data, {"v": 1, "in": [f"docker.io/{repo}"]})
        settings = BucketSettings.model_validate(bucket.settings())
        client = BucketClient("test", stores(settings, read_secret(settings)), CacheCounters())
        self.source = Confirmed(BucketSource(client, LocalRecency(Clock()), lambda _: None))

    def break_at(self, offset: int) -> None:
        read = ObjectReader.read

        async def failing(self: ObjectReader) -> bytes:
            if self.offset + (len(data := await read(self))) > offset:
                raise self._client.fail("a test breaks it off")
            return data

        self._monkeypatch.setattr(ObjectReader, "read", failing)

    def spoil(self) -> None:
        self.bucket.spoil(LAYER)


class Confirmed:
    """A bucket asked as a download asks it: what is not confirmed is not given."""

    def __init__(self, source: BucketSource) -> None:
        self._source = source
        self.place = source.place
        self.blob_size = source.blob_size
        self.reject = source.reject

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        body = await self._source.open(target, digest, offset, priority)
        try:
            await Fetch(target, digest, [self]).allow(body)
        except BaseException:
            await body.aclose()
            raise
        return body


@asynccontextmanager
async def replicas(
    upstream: FakeUpstream, root: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Holder]:
    with redis.running() as server:
        async with starting(upstream, server, Clock(), root) as start:
            one, other = await start(), await start()
            await acquainted(one, other)
            assert (await one.get(f"/v2/library/app/blobs/{LAYER}")).body == DATA
            await one.settled()
            exchange = fleet(other).exchange
            assert exchange is not None
            yield Holder(exchange.peers.holding, blob_file(one.storage, LAYER), monkeypatch)


BACKENDS: Final = ("registry", "registry without lengths", "directory", "bucket", "replica")


@pytest.fixture(params=BACKENDS)
async def stage(
    request: pytest.FixtureRequest,
    upstream: FakeUpstream,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    upstream.add("library/app", IMAGE)
    upstream.add("org/else", OTHERS, "1")
    if request.param == "replica":
        async with replicas(upstream, tmp_path, monkeypatch) as holder:
            yield holder
    elif request.param == "directory":
        yield Directory(tmp_path / "carried in", monkeypatch)
    elif request.param == "bucket":
        yield Bucket(request.getfixturevalue("bucket"), monkeypatch)
    else:
        yield await _registry(request.param, upstream, start)


async def _registry(kind: str, upstream: FakeUpstream, start: Start) -> Stage:
    proxy = await start()
    source = proxy.app.admin._upstreams["docker.io"]
    return Registry(source, upstream) if kind == "registry" else WithoutLengths(source, upstream)


async def joined(body: Body, offset: int = 0) -> bytes:
    """Return the bytes of a body, each of which comes once."""
    async with aclosing(body), aclosing(body.pieces()) as given:
        pieces = sorted([piece async for piece in given])
    for at, data in pieces:
        assert at == offset
        offset += len(data)
    return b"".join(data for _, data in pieces)


def left_open() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("offset", [0, 1, 1_234_567, SIZE - 1])
async def test_a_body_from_any_offset(stage: Stage, offset: int, priority: Priority) -> None:
    body = await stage.source.open(TARGET, LAYER, offset, priority)
    if stage.knows_sizes:
        assert body.size == SIZE
    assert await joined(body, offset) == DATA[offset:]


async def test_a_body_that_is_passed_through_comes_in_order(stage: Stage) -> None:
    body = await stage.source.open(TARGET, LAYER, 7, Priority.PASS_THROUGH)
    at = 7
    async with aclosing(body), aclosing(body.pieces()) as pieces:
        async for offset, data in pieces:
            assert offset == at
            at += len(data)
    assert at == SIZE


async def test_the_size_of_a_blob(stage: Stage) -> None:
    size = await stage.source.blob_size(TARGET, LAYER)
    assert size == (SIZE if stage.knows_sizes else None)


@pytest.mark.parametrize(
    "digest", [NOWHERE, Digest(OTHERS.layers[0])], ids=["nowhere", "of another repository"]
)
async def test_what_the_repository_does_not_hold_is_not_found(stage: Stage, digest: Digest) -> None:
    with pytest.raises(NotFound):
        await stage.source.open(TARGET, digest, 0, Priority.DOWNLOAD)
    with pytest.raises(NotFound):
        await stage.source.blob_size(TARGET, digest)


async def test_t02_wrong_bytes_are_never_kept(stage: Stage, tmp_path: Path) -> None:
    stage.spoil()
    async with opened(tmp_path / "own", Clock(), max_size=1 << 30, unproven_share=1.0) as held:
        downloads = Downloads(held.content)
        reader = downloads.join(Fetch(TARGET, LAYER, [stage.source]))
        with pytest.raises(ContentMismatch):
            await reader.download.proven()
        reader.close()
        await downloads.close()
        assert not await held.on_disk()
        assert held.counters.mismatches == 1


async def test_a_body_that_breaks_off_says_so(stage: Stage) -> None:
    stage.break_at(1_000_000)
    got = bytearray()

    async def read() -> None:
        body = await stage.source.open(TARGET, LAYER, 0, Priority.DOWNLOAD)
        async with aclosing(body), aclosing(body.pieces()) as pieces:
            async for offset, data in pieces:
                assert offset == len(got)
                got.extend(data)

    with pytest.raises(UpstreamFailure):
        await read()
    assert got == DATA[: len(got)]
    assert len(got) <= 1_000_000


async def test_a_cancelled_reader_leaves_nothing_open(stage: Stage) -> None:
    body = await stage.source.open(TARGET, LAYER, 0, Priority.DOWNLOAD)
    before = asyncio.all_tasks()
    begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(body), aclosing(body.pieces()) as pieces:
            async for _ in pieces:
                begun.set()
                await asyncio.sleep(60)

    reading = asyncio.create_task(read())
    await begun.wait()
    open_before = left_open()
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    await until(lambda: left_open() <= open_before)  # the fake's side of a connection ends later
    assert not {task for task in asyncio.all_tasks() - before if "worker" in task.get_name()}


async def test_closing_twice_does_nothing(stage: Stage) -> None:
    body = await stage.source.open(TARGET, LAYER, 0, Priority.DOWNLOAD)
    await body.aclose()
    await body.aclose()
    assert await joined(await stage.source.open(TARGET, LAYER, 0, Priority.DOWNLOAD)) == DATA


class Second(Stage):
    """A source that notes from where it was asked to go on."""

    is_public = is_confirmed = True
    place = Place.PEER

    def __init__(self, size: int | None = SIZE) -> None:
        self.size = size
        self.asked: list[int] = []

    async def open(self, _target: Target, _digest: Digest, offset: int, _: Priority) -> "Second":
        self.asked.append(offset)
        return self

    async def pieces(self):  # type: ignore[no-untyped-def]
        yield Piece(self.asked[-1], DATA[self.asked[-1] :])

    async def aclose(self) -> None:
        return


async def test_a_body_that_breaks_off_goes_on_from_the_next_byte_of_the_next_source(
    stage: Stage,
) -> None:
    stage.break_at(1_000_000)
    second = Second()
    body = await SourcesBody.opened(Fetch(TARGET, LAYER, [stage.source, second], SIZE))
    assert not second.asked
    assert await joined(body) == DATA
    assert len(second.asked) == 1
    assert 0 <= second.asked[0] <= 1_000_000
    assert second.asked[0] > 0 or not isinstance(stage, Directory | Bucket)


async def test_a_source_without_the_blob_is_passed_over(stage: Stage) -> None:
    target = Target("docker.io", Repo("org/else"))
    body = await SourcesBody.opened(Fetch(target, LAYER, [stage.source, Second()]))
    assert await joined(body) == DATA
    assert body.is_public, "what the first one did not give does not count"


async def test_a_source_that_has_another_size_is_not_gone_on_with(stage: Stage) -> None:
    stage.break_at(1_000_000)
    body = await SourcesBody.opened(Fetch(TARGET, LAYER, [stage.source, Second(SIZE + 1)], SIZE))
    with pytest.raises(UpstreamUnavailable):
        await joined(body)


async def test_without_a_source_nothing_is_found() -> None:
    with pytest.raises(NotFound):
        await SourcesBody.opened(Fetch(TARGET, LAYER, []))
