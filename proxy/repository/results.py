"""Results of the cache: one class per way of sending it. Whoever sends a blob closes it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple

from proxy.content.downloads import Reader
from proxy.content.fetching import SourcesBody
from proxy.core.errors import RegistryError
from proxy.core.manifests import Children
from proxy.core.records import Descriptor
from proxy.core.sources import Place
from proxy.runtime.metrics import Outcome
from proxy.storage.disk import DiskBlob


class Forward(NamedTuple):
    """Upstream's answer about content that is held, for ``Cache-Status``.

    ``status`` is upstream's; ``error`` is the reason for sending the held copy instead.
    """

    status: int | None
    error: RegistryError | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as upstream sent it, verified.

    ``children`` is the listed content, None if unknown; ``warning`` is for a ``Warning: 299``
    header; ``fresh`` is the seconds for which a tag needs no check, None for a digest; ``forward``
    is set if upstream was asked although the answer was held; ``place`` is the source.
    ``held_until`` is the time until which a younger image of the tag is held (Unix seconds), None
    without one.
    """

    descriptor: Descriptor
    body: bytes
    outcome: Outcome
    children: Children | None
    warning: str | None = None
    fresh: float | None = None
    forward: Forward | None = None
    place: Place = Place.REGISTRY
    held_until: float | None = None


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """The answer to a HEAD of a manifest."""

    descriptor: Descriptor
    outcome: Outcome
    warning: str | None = None
    fresh: float | None = None
    forward: Forward | None = None
    held_until: float | None = None


@dataclass(frozen=True, slots=True)
class BlobHead:
    """The answer to a HEAD of a blob; ``size`` in bytes, None if upstream does not announce it."""

    size: int | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class NamePage:
    """One page of names, and the query of the next page; empty at the end."""

    names: list[str]
    next_query: dict[str, str]
    outcome: Outcome
    warning: str | None = None
    forward: Forward | None = None


@dataclass(frozen=True, slots=True)
class Referrers:
    """Descriptors of the referrers of a manifest, as JSON values."""

    entries: tuple[dict[str, object], ...]
    is_filtered: bool
    outcome: Outcome
    warning: str | None = None
    forward: Forward | None = None


@dataclass(frozen=True, slots=True)
class LocalBlob:
    """A held blob, opened."""

    blob: DiskBlob
    outcome: Outcome = Outcome.HIT
    place: Place = Place.DISK

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.blob.size

    @property
    def fd(self) -> int | None:
        """The descriptor of its file, None if there is none."""
        return self.blob.fd

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``. Blocks. Raises ``StorageError``."""
        return self.blob.read(start, stop)

    async def readable(self, _offset: int) -> int:
        """Return the end of the blob, which is complete."""
        return self.blob.size

    async def aclose(self) -> None:
        """Close the file."""
        self.blob.close()


@dataclass(frozen=True, slots=True)
class SmallBlob:
    """A held blob whose bytes are in RAM."""

    body: bytes
    outcome: Outcome = Outcome.HIT
    place: Place = Place.DISK

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.body)

    async def aclose(self) -> None:
        """Do nothing: there is no file."""


@dataclass(frozen=True, slots=True)
class LiveBlob:
    """A blob that is arriving."""

    reader: Reader

    @property
    def outcome(self) -> Outcome:
        """MISS for the request that began the download, JOIN for the others."""
        return Outcome.MISS if self.reader.is_first else Outcome.JOIN

    @property
    def place(self) -> Place:
        """Where its first byte came from."""
        return self.reader.download.place

    @property
    def size(self) -> int | None:
        """Length in bytes, None if it is not known yet."""
        return self.reader.size

    async def aclose(self) -> None:
        """Stop reading. The download continues."""
        self.reader.close()


@dataclass(frozen=True, slots=True)
class PassThroughBlob:
    """A blob without space in the cache: verified on its way, its last byte held back."""

    body: SourcesBody
    chunks: AsyncGenerator[bytes, None]
    outcome: Outcome = Outcome.THROUGH

    @property
    def place(self) -> Place:
        """Where its first byte came from."""
        return self.body.place

    @property
    def size(self) -> int | None:
        """Length in bytes, None if it is not announced."""
        return self.body.size

    async def aclose(self) -> None:
        """End the transfer."""
        await self.chunks.aclose()
        await self.body.aclose()


Blob = LocalBlob | SmallBlob | LiveBlob | PassThroughBlob
