"""Objects by digest in one bucket. Only this module and ``stores`` import obstore.

Every call has a time limit, and ``_asked`` translates errors: a missing object is ``BlobUnknown``,
everything else is ``UpstreamUnavailable`` and lets the breaker skip the bucket. The reason is
logged, and not shown to clients.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple

import obstore
from cachetools import LRUCache
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from proxy.core.errors import BlobUnknown, DigestInvalid, UpstreamUnavailable
from proxy.core.names import Digest, parse_digest
from proxy.runtime.metrics import CacheCounters
from proxy.storage.bucket.breaker import Breaker
from proxy.storage.bucket.object_metadata import KEY, ObjectMetadata
from proxy.storage.bucket.stores import ANSWER_SECONDS, STALL_SECONDS, Stores, reason

SLOW_SECONDS: Final = 10.0
SLOW_RATE: Final = 32 * 1024
"""After this many seconds of waiting for a body, fewer bytes a second count as a failure."""

PART: Final = 8 * 1024 * 1024
"""Bytes of one part of a large upload. Smaller content is written by one request."""

_PARTS_CONCURRENCY: Final = 2
_MAX_PARTS: Final = 9_000
_CHUNK: Final = 256 * 1024
_PAGE: Final = 1000
_WRITES: Final = ("put", "delete")
_WRITE_SECONDS: Final = 60.0
_MAX_KNOWN: Final = 100_000


class Entry(NamedTuple):
    """An object in a list: ``size`` in bytes, ``modified_at`` in Unix seconds."""

    digest: Digest
    size: int
    modified_at: float


class BucketClient:
    """Reads, writes, lists and deletes objects. Needs no close."""

    def __init__(self, name: str, stores: Stores, counters: CacheCounters) -> None:
        self.name: Final = name
        self.reading: Final = Breaker(name, "reading")
        self.writing: Final = Breaker(name, "writing")
        self._stores = stores
        self._counters = counters
        self._known: LRUCache[Digest, bool] = LRUCache(_MAX_KNOWN)

    def __repr__(self) -> str:
        return f"<BucketClient {self.name}>"

    def has(self, digest: Digest) -> bool | None:
        """Return whether an object was there when it was last looked at; None if unknown."""
        return self._known.get(digest)

    @property
    def seconds_left(self) -> float:
        """Seconds for which reading or writing is still skipped; 0 if neither is."""
        return max(self.reading.seconds_left, self.writing.seconds_left)

    async def open(self, digest: Digest, offset: int = 0) -> "ObjectReader":
        """Return a reader of an object from ``offset`` on.

        Raises ``BlobUnknown``, ``UpstreamUnavailable``.
        """
        options: Any = {"range": {"offset": offset}} if offset else None
        async with self._asked("get", digest, ANSWER_SECONDS):
            found = await obstore.get_async(self._stores.reading, _path(digest), options=options)
        return ObjectReader(self, found, offset)

    async def head(self, digest: Digest) -> tuple[int, ObjectMetadata]:
        """Return an object's size in bytes and its card.

        Raises ``BlobUnknown``, ``UpstreamUnavailable``.
        """
        async with self._asked("head", digest, ANSWER_SECONDS):
            found = await obstore.get_async(
                self._stores.reading, _path(digest), options={"head": True}
            )
        return found.meta["size"], _metadata(found)

    async def create(self, digest: Digest, data: bytes, metadata: ObjectMetadata) -> bool:
        """Write a small object unless there is one; return True if it was written.

        Raises ``UpstreamUnavailable``.
        """
        try:
            async with self._asked("put", digest, _WRITE_SECONDS):
                await obstore.put_async(
                    self._stores.writing,
                    _path(digest),
                    data,
                    attributes=_attributes(metadata),
                    mode="create",
                )
        except AlreadyExistsError:
            self._known[digest] = True
            return False
        return True

    async def write(
        self, digest: Digest, chunks: AsyncIterator[bytes], size: int, metadata: ObjectMetadata
    ) -> None:
        """Write an object of ``size`` bytes in parts, in place of one that may be there.

        Errors of ``chunks`` are raised, and no parts are left. A cancellation leaves parts.
        Raises ``UpstreamUnavailable``.
        """
        async with self._asked("put", digest, None):
            await obstore.put_async(
                self._stores.writing,
                _path(digest),
                chunks,
                attributes=_attributes(metadata),
                use_multipart=True,
                chunk_size=max(PART, -(-size // _MAX_PARTS)),
                max_concurrency=_PARTS_CONCURRENCY,
            )

    async def delete(self, digests: list[Digest]) -> None:
        """Delete objects; those that are not there need no deletion.

        Raises ``UpstreamUnavailable``.
        """
        for digest in digests:
            self._known[digest] = False
        try:
            async with self._asked("delete", None, _WRITE_SECONDS):
                await obstore.delete_async(self._stores.writing, [*map(_path, digests)])
        except BlobUnknown:  # some services say so: then each is deleted by a request
            for digest in digests:
                with suppress(BlobUnknown):
                    async with self._asked("delete", None, _WRITE_SECONDS):
                        await obstore.delete_async(self._stores.writing, _path(digest))

    async def scan(self) -> AsyncGenerator[list[Entry], None]:
        """Yield all objects in pages. Raises ``UpstreamUnavailable``, also for a missing bucket."""
        pages = self._stores.reading.list("blobs", chunk_size=_PAGE)
        while True:
            async with self._asked("list", None, _WRITE_SECONDS):
                page = await anext(pages, None)
            if page is None:
                return
            yield [entry for entry in map(_entry, page) if entry is not None]

    async def url(self, digest: Digest, seconds: float) -> str | None:
        """Return a URL by which clients can GET an object; None without a public endpoint."""
        if self._stores.public is None or self.reading.is_open:
            return None
        valid_for = timedelta(seconds=seconds)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):  # it may need credentials of the machine
                return await obstore.sign_async(
                    self._stores.public, "GET", _path(digest), valid_for
                )
        except (TimeoutError, BaseError, ValueError, OSError) as error:
            self.fail(f"a URL cannot be signed: {reason(error)}")
            return None

    def bounded(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Limit the time of one step of reading a body. Raises ``UpstreamUnavailable``."""
        return self._translated(self.reading, None, seconds)

    def received(self, count: int) -> None:
        """Count bytes of a body."""
        self._counters.bucket_read_bytes += count

    def fail(self, problem: str) -> UpstreamUnavailable:
        """Skip the bucket for a time because of a bad answer; return the error to raise."""
        return self._failed(self.reading, problem)

    def _failed(self, breaker: Breaker, problem: str) -> UpstreamUnavailable:
        self._counters.bucket_failures += 1
        breaker.failed(problem)
        return UpstreamUnavailable("the bucket cannot be used")

    @asynccontextmanager
    async def _asked(
        self, operation: str, digest: Digest | None, seconds: float | None
    ) -> AsyncIterator[None]:
        """Send one request; remember whether the object of ``digest`` is there."""
        breaker = self.writing if operation in _WRITES else self.reading
        breaker.enter()
        self._counters.bucket_requests[operation] += 1
        async with self._translated(breaker, digest, seconds):
            yield
        if digest is not None:
            self._known[digest] = True

    @asynccontextmanager
    async def _translated(
        self, breaker: Breaker, digest: Digest | None, seconds: float | None
    ) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._failed(breaker, reason(error)) from None
            breaker.succeeded()
            if digest is not None:
                self._known[digest] = False
            raise BlobUnknown(f"{digest} is not in the bucket") from None
        except (AlreadyExistsError, PreconditionError):
            breaker.succeeded()
            raise
        except TimeoutError:
            raise self._failed(breaker, f"no answer within {seconds:g} seconds") from None
        except (BaseError, ValueError, OSError) as error:
            raise self._failed(breaker, reason(error)) from None
        else:
            breaker.succeeded()


class ObjectReader:
    """The body of one object, from an offset on. ``size`` in bytes is that of the whole object."""

    def __init__(self, client: BucketClient, found: "obstore.GetResult", offset: int) -> None:
        self.size: Final = found.meta["size"]
        self.metadata: Final = _metadata(found)
        self.offset = offset
        self._client = client
        self._chunks: Any = found.stream(min_chunk_size=_CHUNK)
        self._waited = 0.0
        self._received = 0

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. Raises ``UpstreamUnavailable``."""
        if self._chunks is None:
            return b""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with self._client.bounded(STALL_SECONDS):
            data: bytes = await anext(self._chunks, b"")
        self._waited += loop.time() - begun
        self._received += len(data)
        self.offset += len(data)
        self._client.received(len(data))
        if self._waited > SLOW_SECONDS and self._received < SLOW_RATE * self._waited:
            raise self._client.fail("it is too slow")
        return data

    async def whole(self) -> bytes:
        """Return all remaining bytes. Raises ``UpstreamUnavailable``."""
        collected = bytearray()
        while data := await self.read():
            collected += data
        return bytes(collected)

    def close(self) -> None:
        """End the transfer. A second call does nothing."""
        self._chunks = None  # dropping the stream closes its connection


def _path(digest: Digest) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _entry(listed: Any) -> Entry | None:
    """Return an object of a list, None for one of others."""
    try:
        digest = parse_digest(listed["path"].removeprefix("blobs/").replace("/", ":", 1))
    except DigestInvalid:
        return None
    return Entry(digest, listed["size"], listed["last_modified"].timestamp())


def _attributes(metadata: ObjectMetadata) -> Any:
    return {"Content-Type": "application/octet-stream", KEY: metadata.text()}


def _metadata(found: "obstore.GetResult") -> ObjectMetadata:
    return ObjectMetadata.parse(found.attributes.get(KEY))
