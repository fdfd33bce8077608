"""The seam to stored content: bytes by digest.

A store holds only verified content, and each digest at most once. Errors of the medium are raised
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
    """Corrupt content, kept aside for inspection. Every method blocks."""

    @property
    def bytes(self) -> int:
        """Disk bytes in use."""

    def take(self, digest: Digest, note: str) -> str:
        """Move a blob here from the store, with a note unless that is empty; return its path.

        Raises ``StorageError``.
        """

    def notes(self) -> list[str]:
        """Return the notes beside the content."""

    def empty(self) -> None:
        """Delete everything."""


class BlobStore(Protocol):
    """Stored content by digest."""

    quarantine: Quarantine

    def open(self, digest: Digest) -> Blob | None:
        """Return the blob, opened, or None if it is not held. Raises ``StorageError``."""

    async def spool(self, digest: Digest, size: int | None) -> Spool:
        """Return a new spool with ``size`` bytes of disk allocated (None: not known)."""

    async def put(self, digest: Digest, spool: Spool) -> None:
        """Make a *verified* spool the blob ``digest``: durable first, then visible.

        Waits for a deletion of the same digest.
        """

    def condemn(self, digests: list[Digest]) -> None:
        """Stop holding these at once; ``delete`` must follow."""

    async def delete(self, digests: list[Digest]) -> list[Digest]:
        """Remove blobs; return those that could not be removed and still take disk space."""

    def free(self) -> int:
        """Return the free bytes of the medium. Raises ``StorageError``."""

    def scan(self) -> AsyncIterator[list[tuple[Digest, int, float]]]:
        """Yield batches of (digest, size in bytes, modification time) of all blobs."""
