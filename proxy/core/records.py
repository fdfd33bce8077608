"""Immutable values that modules store or pass to one another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from proxy.core.names import Digest, Tag, Target

Clock = Callable[[], float]
"""Returns the time in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The type, digest and size in bytes of content (image-spec ``descriptor.md``)."""

    media_type: str
    digest: "Digest"
    size: int


@dataclass(frozen=True, slots=True)
class TagRecord:
    """The descriptor of a tag when upstream last confirmed it (``checked_at``, Unix seconds)."""

    descriptor: Descriptor
    checked_at: float


@dataclass(frozen=True, slots=True)
class TagHistoryEntry:
    """A digest that a tag pointed to, from ``first_seen`` to ``last_seen`` (Unix seconds)."""

    digest: "Digest"
    first_seen: float
    last_seen: float


HISTORY_LIMIT: Final = 50
"""Maximum number of entries in a tag's history."""


def merged_history(entries: Iterable[TagHistoryEntry]) -> list[TagHistoryEntry]:
    """Return the histories of a tag from several caches as one, in the order of first sighting.

    Sightings of one digest are merged unless another digest was seen in between.
    """
    merged: list[TagHistoryEntry] = []
    for entry in sorted(entries, key=lambda one: (one.first_seen, one.last_seen)):
        if merged and merged[-1].digest == entry.digest:
            last = max(merged[-1].last_seen, entry.last_seen)
            merged[-1] = TagHistoryEntry(entry.digest, merged[-1].first_seen, last)
        else:
            merged.append(entry)
    return merged


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images that are recorded all together: what repositories hold, and where their tags point.

    ``referrers`` has repositories, subjects and entries. ``notes`` are written along.
    """

    links: "Mapping[Target, Sequence[Digest]]"
    referrers: "Sequence[tuple[Target, Digest, dict[str, object]]]"
    tags: "Mapping[tuple[Target, Tag], TagRecord]"
    history: "Mapping[tuple[Target, Tag], Sequence[TagHistoryEntry]]"
    notes: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ReferrersRecord:
    """The referrers of a manifest, as descriptors in JSON values.

    ``checked_at`` is when upstream last listed them, Unix seconds; None if it never did, and they
    are known from cached manifests only.
    """

    entries: tuple[dict[str, object], ...]
    checked_at: float | None


@dataclass(frozen=True, slots=True)
class TagList:
    """The tags that upstream last listed, in order; ``seen_at`` in Unix seconds.

    ``is_complete`` is False if only some pages were read, or not all tags were stored.
    """

    tags: tuple[str, ...]
    is_complete: bool
    seen_at: float


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """A cached blob or manifest: ``size`` in bytes, ``used_at`` in Unix seconds.

    ``media_type`` is from upstream, None for content from a blob endpoint. ``is_public``: upstream
    sent it without credentials; False if unknown. An image that lists a blob may have been used
    later than ``used_at``; ``Index.last_uses`` knows.
    """

    digest: "Digest"
    size: int
    media_type: str | None
    used_at: float
    is_public: bool = False

    @property
    def descriptor(self) -> Descriptor:
        """Its descriptor; the type is empty for content from a blob endpoint."""
        return Descriptor(self.media_type or "", self.digest, self.size)


class Child(NamedTuple):
    """Content that a manifest lists; ``size`` in bytes is from the manifest."""

    digest: "Digest"
    size: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The content of the cache; ``disk_bytes`` counts 4 KiB blocks, as file systems do."""

    files: int
    disk_bytes: int


BLOCK: Final = 4096
"""Bytes of the smallest file on common file systems."""


def disk_bytes(size: int) -> int:
    """Return the bytes on disk of a file of ``size`` bytes."""
    return -(-size // BLOCK) * BLOCK


def counted(usage: Usage, former: BlobRecord | None, record: BlobRecord | None) -> Usage:
    """Return ``usage`` with ``record`` in place of ``former``; None is no content."""
    files, size = usage.files, usage.disk_bytes
    if former is not None:
        files, size = files - 1, size - disk_bytes(former.size)
    if record is not None:
        files, size = files + 1, size + disk_bytes(record.size)
    return Usage(files, size)
