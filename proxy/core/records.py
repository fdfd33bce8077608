"""Frozen facts that rooms store or hand to one another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.core.names import Digest

Clock = Callable[[], float]
"""Tells Unix seconds."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What content is, without the content (image-spec ``descriptor.md``). ``size`` in bytes."""

    media_type: str
    digest: "Digest"
    size: int


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag pointed to when upstream was last asked (``checked_at``, Unix seconds)."""

    descriptor: Descriptor
    checked_at: float


@dataclass(frozen=True, slots=True)
class TagHistoryEntry:
    """One digest in a tag's history: when it was first and last seen there, Unix seconds."""

    digest: "Digest"
    first_seen: float
    last_seen: float


@dataclass(frozen=True, slots=True)
class ReferrersRecord:
    """What refers to a manifest, as descriptors in JSON values.

    ``checked_at`` is when upstream was last asked, Unix seconds; None for what only the held
    manifests themselves have told.
    """

    entries: tuple[dict[str, object], ...]
    checked_at: float | None


@dataclass(frozen=True, slots=True)
class ListedPage:
    """One page of tags as upstream gave it.

    ``query`` asked for it, ``further`` asks for the next one and is empty at the end. ``is_whole``:
    these are all tags of the repository.
    """

    tags: list[str]
    query: dict[str, str]
    further: dict[str, str]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class TagList:
    """The tags that upstream listed last, in order; ``seen_at`` in Unix seconds.

    ``is_complete`` is False when only some pages of the list were read, or not all were kept.
    """

    tags: tuple[str, ...]
    is_complete: bool
    seen_at: float


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """A held blob or manifest: ``size`` in bytes, ``used_at`` in Unix seconds.

    ``media_type`` is what upstream called it, and None for what came through a blob end-point.
    ``is_public``: it came from an upstream that got no credentials for it. False if unknown.
    """

    digest: "Digest"
    size: int
    media_type: str | None
    used_at: float
    is_public: bool = False


class Child(NamedTuple):
    """What a manifest lists: content, and its ``size`` in bytes as the manifest says."""

    digest: "Digest"
    size: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the cache holds: ``disk_bytes`` counts 4 KiB blocks, as a file system does."""

    files: int
    disk_bytes: int


BLOCK: Final = 4096
"""Bytes. What the smallest file costs on the file systems that matter."""


def disk_bytes(size: int) -> int:
    """Return what a file of ``size`` bytes takes on disk, in bytes."""
    return -(-size // BLOCK) * BLOCK
