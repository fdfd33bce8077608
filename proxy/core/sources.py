"""The interface to sources of blobs: registries, the bucket, directories of other Millponds.

The bytes of a source are not verified. They are hashed before they are stored or sent.
"""

from collections.abc import AsyncGenerator, Callable
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol

from proxy.core.names import Digest, Target


class Priority(Enum):
    """The purpose of a body."""

    DOWNLOAD = "download"
    """Clients wait, and the cache accepts the bytes as fast as they arrive, in any order."""
    PASS_THROUGH = "pass through"  # noqa: S105 - not a password
    """One client, which may be slow: it waits for no other download, and none waits for it."""
    PREFETCH = "prefetch"
    """No client yet: one attempt, and a refusal does not count as a failure of the source."""


class Place(StrEnum):
    """The origin of content."""

    DISK = "disk"
    """This machine's cache, or a fallback directory."""
    PEER = "peer"
    """Another replica."""
    BUCKET = "bucket"
    REGISTRY = "registry"


WrongBytes = Callable[[Target, Digest, str], None]
"""Gets a repository, the digest of its content, and that of the bytes that a source gave for it."""


class Piece(NamedTuple):
    """Some bytes of a body and the offset at which they belong."""

    offset: int
    data: bytes | memoryview


class Body(Protocol):
    """One blob from one source, as it arrives. ``size`` is that of the whole blob, if announced.

    ``is_public``: no credentials were needed for it, so every client may have it.
    ``is_confirmed``: the requested repository contains it. Otherwise the source only has these
    bytes, and the registry must confirm the repository before a client gets any.
    """

    size: int | None
    is_public: bool
    is_confirmed: bool

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield every byte once, from the requested offset to the end.

        With ``PASS_THROUGH`` in order, otherwise in any order. Call it once. Raises
        ``UpstreamFailure`` when the source breaks off.
        """

    async def aclose(self) -> None:
        """End the transfer. A second call does nothing."""


class Source(Protocol):
    """A place that has blobs; ``place`` is its kind."""

    @property
    def place(self) -> Place:
        """The kind of place, for statistics and ``Cache-Status``."""

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return a body from ``offset`` on. Raises ``NotFound`` or ``UpstreamFailure``."""

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        """Return the size in bytes of a blob that the repository holds, None if not announced.

        Raises ``NotFound`` or ``UpstreamFailure``.
        """

    def reject(self, digest: Digest) -> None:
        """Record that its bytes for ``digest`` were wrong."""


class SharedManifest(NamedTuple):
    """A manifest whose bytes match its digest, as others of this cache's kind have stored it."""

    body: bytes
    media_type: str
    is_public: bool
    place: Place = Place.BUCKET


class SharedManifests(Protocol):
    """A place of manifests that other machines fill."""

    async def manifest(self, target: Target, digest: Digest) -> SharedManifest | None:
        """Return a manifest that the repository is known to hold, None without one.

        Raises nothing: a failure means None.
        """


class SharedSource(Source, SharedManifests, Protocol):
    """A source that other machines fill, and that keeps manifests too."""
