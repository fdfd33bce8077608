"""Small blobs in Redis, because the bucket does not keep them, and replicas with them may be gone.

A key is of one repository: whoever finds it there knows that the repository holds the blob. The
bytes are verified by digest.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol

from proxy.core.errors import BlobUnknown, FleetUnavailable, UpstreamUnavailable
from proxy.core.names import Digest, Target, matches
from proxy.core.sources import Body, Piece, Place, Priority
from proxy.fleet.small_content import LIFE_SECONDS, MAX_WAITING
from proxy.fleet.store import Store

Read = Callable[[Digest], Awaitable[bytes | None]]
"""Returns held content whole, None if it is not held."""

_PUBLIC: Final = b"1"
_PRIVATE: Final = b"0"


class Stored(Protocol):
    """A blob that this replica has fetched and stored."""

    @property
    def target(self) -> Target:
        """The repository, of which the registry has confirmed that it holds the blob."""

    @property
    def digest(self) -> Digest:
        """Its digest."""

    @property
    def written(self) -> int:
        """Its size in bytes."""

    @property
    def is_public(self) -> bool:
        """Every client may have it."""


class SmallBlobs:
    """Blobs of up to ``largest`` bytes; ``read`` reads those of this replica. Run ``run``."""

    place: Final = Place.PEER

    def __init__(self, store: Store, largest: int, read: Read) -> None:
        self._store = store
        self._read = read
        self.largest: Final = largest
        self._waiting: asyncio.Queue[Stored] = asyncio.Queue(MAX_WAITING)

    def add(self, blob: Stored) -> None:
        """Send a blob later if it is small."""
        if blob.written <= self.largest and not self._waiting.full():
            self._waiting.put_nowait(blob)

    async def run(self) -> None:
        """Send blobs, until cancelled. Those that Redis does not take are dropped."""
        while True:
            blob = await self._waiting.get()
            body = await self._read(blob.digest)
            if body is None:
                continue
            key = self._key(blob.target, blob.digest)
            value = (_PUBLIC if blob.is_public else _PRIVATE) + body
            try:
                await self._store.run("SET", key, value, "EX", LIFE_SECONDS)
            except FleetUnavailable:
                continue

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return a blob from ``offset`` on. Raises ``BlobUnknown``, ``UpstreamUnavailable``."""
        return _SmallBody(*await self._get(target, digest), offset)

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        """Return the size of a blob. Raises ``BlobUnknown``, ``UpstreamUnavailable``."""
        body, _ = await self._get(target, digest)
        return len(body)

    def reject(self, digest: Digest) -> None:
        """Do nothing: wrong bytes are not given."""

    async def _get(self, target: Target, digest: Digest) -> tuple[bytes, bool]:
        try:
            value = await self._store.run("GET", self._key(target, digest))
        except FleetUnavailable:
            raise UpstreamUnavailable("Redis does not answer") from None
        if not isinstance(value, bytes) or len(value) > self.largest + 1:
            raise BlobUnknown(f"{target}@{digest} is not in Redis")
        if not matches(digest, value[1:]):
            raise BlobUnknown(f"{target}@{digest}: wrong bytes in Redis")
        return value[1:], value[:1] == _PUBLIC

    def _key(self, target: Target, digest: Digest) -> str:
        return self._store.key("blob", target.upstream, target.repo, digest)


class _SmallBody:
    """A blob in memory, from an offset on."""

    def __init__(self, data: bytes, is_public: bool, offset: int) -> None:  # noqa: FBT001
        self.size: int | None = len(data)
        self.is_public = is_public
        self.is_confirmed = True
        self._data = data
        self._offset = offset

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield all bytes at once."""
        if self._offset < len(self._data):
            yield Piece(self._offset, self._data[self._offset :])

    async def aclose(self) -> None:
        """Do nothing."""
