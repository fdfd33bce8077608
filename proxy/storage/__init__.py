"""The seam to where content lives: bytes by digest, nothing else.

A store holds only verified content, and each digest at most once. Errors of the medium come out
as ``StorageError``.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from proxy.core.names import Digest


class Readable(Protocol):
    """Bytes that can be read by position; ``fd`` is set only if they are a local file."""

    @property
    def fd(self) -> int | None:
        """The descriptor of the file, for ``sendfile``; None if there is none."""

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, fewer at the end. Blocks. Raises ``StorageError``."""


class Blob(Readable, Protocol):
    """An open, complete blob. It stays readable after it has been deleted from the store."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    @property
    def modified_at(self) -> float:
        """When it was stored, Unix seconds."""

    def close(self) -> None:
        """Release it. A second call does nothing."""


class Spool(Readable, Protocol):
    """A file that grows while a download runs, private until ``put`` makes it a blob."""

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write at ``offset``. Blocks. Raises ``StorageError``."""

    def discard(self) -> None:
        """Remove it; does nothing after ``put``. It stays readable until ``close``."""

    def close(self) -> None:
        """Close it. A second call does nothing."""


class Quarantine(Protocol):
    """Where content is set aside that has gone bad; all of it blocks."""

    @property
    def bytes(self) -> int:
        """Disk bytes that it takes."""

    def take(self, digest: Digest, note: str) -> str:
        """Move a blob out of the store, with a note unless it is empty; return where.

        Raises ``StorageError``.
        """

    def notes(self) -> list[str]:
        """Return the notes that lie beside the content."""

    def empty(self) -> None:
        """Delete everything."""


class BlobStore(Protocol):
    """Where content lives."""

    quarantine: Quarantine

    def open(self, digest: Digest) -> Blob | None:
        """Return the blob, opened, or None when it is not held."""

    async def spool(self, digest: Digest, size: int | None) -> Spool:
        """Return a new spool with ``size`` bytes of disk promised to it (None: not known)."""

    async def put(self, digest: Digest, spool: Spool) -> None:
        """Make a *verified* spool the blob ``digest``: durable first, then visible.

        Waits for a deletion of the same digest.
        """

    def condemn(self, digests: list[Digest]) -> None:
        """Hold these no longer, from this moment; ``delete`` must follow."""

    async def delete(self, digests: list[Digest]) -> list[Digest]:
        """Remove blobs; return those that could not be removed and still take their room."""

    def free(self) -> int:
        """Return how many more bytes the medium takes. Raises ``StorageError``."""

    def scan(self) -> AsyncIterator[list[tuple[Digest, int, float]]]:
        """Yield batches of (digest, size in bytes, modification time) of all that is held."""
