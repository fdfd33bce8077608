"""Sources of each kind, with one blob, for the contract in `test_sources.py`."""

import os
from pathlib import Path

import pytest

from proxy.app.bucket import read_secret, stores
from proxy.content.fetching import Fetch
from proxy.core.names import Digest, Repo, Target
from proxy.core.sources import Body, Priority, Source
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
from tests.parts.seaweed import TestBucket

SIZE = 3_000_000
IMAGE = content.image(1, layers=(SIZE,))
OTHERS = content.image(2, layers=(1000,))
LAYER = Digest(IMAGE.layers[0])
DATA = IMAGE.blobs[LAYER]
TARGET = Target("docker.io", Repo("library/app"))


class Stage:
    """A source, and what can happen to the blob that it has."""

    source: Source
    knows_sizes = True
    is_proof = True
    """What it has is proven, so it also says how large it is."""

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
    """A source asked as a download asks it: what is not confirmed is not given."""

    def __init__(self, source: Source) -> None:
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
