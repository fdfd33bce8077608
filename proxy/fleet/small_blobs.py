"""Small blobs in Redis, because the bucket does not keep them, and replicas with them may be gone.

The bytes are verified by digest.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol

from proxy.core.errors import BlobUnknown, FleetUnavailable, UpstreamUnavailable
from proxy.core.names import Digest, Target, matches
from proxy.core.sources import Body, Piece, Place, Priority
from proxy.fleet.small_values import SmallValues
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
        self._values = SmallValues(store, "blob")
        self.run: Final = self._values.run
        self._read = read
        self.largest: Final = largest

    def add(self, blob: Stored) -> None:
        """Send a blob later if it is small, and still held then."""

        async def value() -> bytes | None:
            body = await self._read(blob.digest)
            return None if body is None else (_PUBLIC if blob.is_public else _PRIVATE) + body

        if blob.written <= self.largest:
            self._values.add(blob.target, blob.digest, value)

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
            value = await self._values.get(target, digest)
        except FleetUnavailable:
            raise UpstreamUnavailable("Redis does not answer") from None
        if not isinstance(value, bytes) or len(value) > self.largest + 1:
            raise BlobUnknown(f"{target}@{digest} is not in Redis")
        if not matches(digest, value[1:]):
            raise BlobUnknown(f"{target}@{digest}: wrong bytes in Redis")
        return value[1:], value[:1] == _PUBLIC


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
