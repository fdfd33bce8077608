"""Notices to listeners about content that arrived, was evicted, or is corrupt."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord

MAX_LISTED: Final = 100
"""Maximum number of evicted blobs that are listed one by one."""


@dataclass(frozen=True, slots=True)
class Cached:
    """Newly stored content of ``size`` bytes, which took ``seconds`` to arrive.

    ``target`` None: it is not linked to a repository yet. ``source`` is a ``Place``, or ``import``.
    """

    target: Target | None
    digest: Digest
    size: int
    source: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Bytes that are not ``digest``. ``found`` is their digest, None if it is not known.

    ``target`` None: no repository is known for them. ``where`` is a ``Place``, or ``bundle``.
    """

    target: Target | None
    digest: Digest
    found: str | None
    where: str


@dataclass(slots=True)
class Evicted:
    """The blobs that one eviction removed; ``listed`` are the first ``MAX_LISTED`` of them."""

    listed: list[BlobRecord] = field(default_factory=list)
    blobs: int = 0
    bytes: int = 0

    def add(self, record: BlobRecord, size: int) -> None:
        """Count a blob that took ``size`` bytes of the disk."""
        if self.blobs < MAX_LISTED:
            self.listed.append(record)
        self.blobs += 1
        self.bytes += size


Moved = Callable[[Target, Tag, Digest | None, Digest], None]
"""Gets a tag, the digest that it pointed to (None: it was not known), and the one it points to."""
