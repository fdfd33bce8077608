"""The bucket as a source of blobs and manifests, asked after the disk and before the registry."""

from collections.abc import AsyncGenerator, Callable
from typing import Final

import structlog
from cachetools import TTLCache

from proxy.core import manifests
from proxy.core.errors import BlobUnknown, NotFound, UpstreamUnavailable
from proxy.core.names import Digest, Target, matches, sha256
from proxy.core.sources import Body, Piece, Place, Priority, SharedManifest, WrongBytes
from proxy.runtime.executors import in_thread_if_large
from proxy.runtime.singleflight import SingleFlight
from proxy.storage.bucket.client import BucketClient, ObjectReader
from proxy.storage.bucket.recency import Recency

PROVEN_FIRST: Final = 1024 * 1024
"""Maximum size of an object that is verified before its first byte is sent: a wrong one then costs
only a request, and the client does not notice."""

REJECTED_SECONDS: Final = 60.0
"""Time for which a wrong object is not read again."""

_MAX_REJECTED: Final = 10_000

log = structlog.get_logger(__name__)


class BucketSource:
    """The objects of the bucket. A body states whether the repository is known to have it.

    ``replace`` gets the digests of objects with wrong bytes.
    """

    place: Final = Place.BUCKET

    def __init__(
        self, client: BucketClient, recency: Recency, replace: Callable[[Digest], None]
    ) -> None:
        self._client = client
        self._recency = recency
        self._replace = replace
        self.on_wrong: Final[list[WrongBytes]] = []
        """Called with small objects whose bytes were wrong; readers of large ones verify them."""
        self._rejected: TTLCache[Digest, None] = TTLCache(_MAX_REJECTED, REJECTED_SECONDS)
        self._manifests: SingleFlight[SharedManifest | None] = SingleFlight("read from the bucket")

    def __repr__(self) -> str:
        return f"<BucketSource {self._client.name}>"

    async def close(self) -> None:
        """Cancel running reads."""
        await self._manifests.close()

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return an object from ``offset`` on. Raises ``BlobUnknown``, ``UpstreamUnavailable``."""
        reader = await self._opened(digest, offset)
        self._recency.touch(digest)
        proven = None
        if offset == 0 and reader.size <= PROVEN_FIRST:
            proven = await self._proven(target, digest, reader)
        return _ObjectBody(reader, target, proven)

    async def blob_size(self, target: Target, digest: Digest) -> int:
        """Return the size in bytes of an object that the repository is known to hold.

        Raises ``BlobUnknown``, ``UpstreamUnavailable``.
        """
        size, metadata = await self._client.head(digest)
        if target not in metadata.holders:
            raise BlobUnknown(f"{target}@{digest} is not in the bucket")
        return size

    async def manifest(self, target: Target, digest: Digest) -> SharedManifest | None:
        """Return a manifest that the repository is known to hold, None without one."""
        return await self._manifests.do((target, digest), lambda: self._manifest(target, digest))

    def reject(self, digest: Digest) -> None:
        """Record that the bytes of an object were wrong, and have it replaced."""
        log.error("wrong bytes in the bucket", bucket=self._client.name, digest=digest)
        self._rejected[digest] = None
        self._replace(digest)

    async def _opened(self, digest: Digest, offset: int = 0) -> ObjectReader:
        """Return an object that was not rejected. Raises ``BlobUnknown``, ``UpstreamUnavailable``.

        A client tries again before a wrong object is replaced.
        """
        if digest in self._rejected:
            raise BlobUnknown(f"{digest} is wrong in the bucket")
        return await self._client.open(digest, offset)

    async def _manifest(self, target: Target, digest: Digest) -> SharedManifest | None:
        try:
            reader = await self._opened(digest)
            metadata = reader.metadata
            media_type = metadata.media_type
            if (
                media_type is None
                or target not in metadata.holders
                or reader.size > manifests.MAX_SIZE
            ):
                reader.close()
                return None
            body = await self._proven(target, digest, reader)
        except (NotFound, UpstreamUnavailable):
            return None
        self._recency.touch(digest)
        return SharedManifest(body, media_type, metadata.is_public)

    async def _proven(self, target: Target, digest: Digest, reader: ObjectReader) -> bytes:
        """Return all bytes of a small object. Raises ``BlobUnknown`` if they are wrong."""
        try:
            body = await reader.whole()
        finally:
            reader.close()
        if await in_thread_if_large(len(body), lambda: matches(digest, body)):
            return body
        self.reject(digest)
        for listener in self.on_wrong:
            listener(target, digest, sha256(body))
        raise BlobUnknown(f"{digest} is not in the bucket")


class _ObjectBody:
    """The bytes of one object in their order; ``proven`` has them if they were read before."""

    def __init__(self, reader: ObjectReader, target: Target, proven: bytes | None) -> None:
        self.size: int | None = reader.size
        self.is_public = reader.metadata.is_public
        self.is_confirmed = target in reader.metadata.holders
        self._reader = reader
        self._proven = proven

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the bytes in order. Raises ``UpstreamUnavailable``."""
        if self._proven is not None:
            yield Piece(0, self._proven)
            return
        offset = self._reader.offset
        while data := await self._reader.read():
            yield Piece(offset, data)
            offset += len(data)

    async def aclose(self) -> None:
        """End the transfer. A second call does nothing."""
        self._reader.close()
