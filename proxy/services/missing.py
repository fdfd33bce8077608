"""Finds missing pieces of images: lost pieces, and those of pinned images.

A piece is lost if it was quarantined or deleted because it was damaged. Other pieces that are not
held are not lost: no client has requested them, or they were evicted.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

from proxy.content.content import Content
from proxy.core.errors import DigestInvalid
from proxy.core.manifests import INDEX_TYPES, walk
from proxy.core.names import Digest, Target, parse_digest
from proxy.core.tolerant_json import as_list, read_object
from proxy.services.inventory import broken_by

MAX_LOST: Final = 1000
"""Maximum number of recorded lost pieces; the oldest are dropped first."""


@dataclass(frozen=True, slots=True)
class MissingPiece:
    """Missing content of an image. ``media_type`` is None for a blob, "" for an unknown type."""

    digest: Digest
    media_type: str | None
    reason: str
    images: list[str]


class LostContent:
    """Quarantined content that was not fetched again: its media types, None for a blob."""

    def __init__(self, noted: object) -> None:
        """Take the result of an earlier ``to_json``; malformed rows are left out."""
        self.types: dict[Digest, str | None] = {}
        for row in as_list(noted):
            match row:
                case [str(text), str() | None as media_type]:
                    self._add(text, media_type)

    def to_json(self) -> list[list[str | None]]:
        """Return the newest ``MAX_LOST`` as JSON values."""
        return [[digest, kind] for digest, kind in list(self.types.items())[-MAX_LOST:]]

    def add(self, digest: Digest, media_type: str | None) -> None:
        """Record a piece."""
        self.types[digest] = media_type

    def discard(self, digest: Digest) -> None:
        """Remove a piece, if it is recorded."""
        self.types.pop(digest, None)

    def merge(self, notes: Iterable[str]) -> None:
        """Add the content that notes in quarantine name."""
        for note in notes:
            document = read_object(note.encode())
            known = document.get("media_type")
            self._add(str(document.get("digest")), known if isinstance(known, str) else None)

    def _add(self, text: str, media_type: str | None) -> None:
        try:
            digest = parse_digest(text)
        except DigestInvalid:
            return
        if self.types.get(digest) is None:
            self.types[digest] = media_type


async def find(content: Content, lost: LostContent, pinned: Iterable[Digest]) -> list[MissingPiece]:
    """Return the pieces that images need and the cache does not have.

    Drops records of lost content that is held again or that no image needs.
    """
    lost.merge(await content.faults.notes())
    pieces = {}
    for digest, media_type in list(lost.types.items()):
        held = await content.record(digest) is not None
        images = [] if held else await broken_by(content, digest)
        if not images:
            lost.discard(digest)
            continue
        kind = media_type if media_type is not None else await _kind(content, digest)
        pieces[digest] = MissingPiece(digest, kind, "it was set aside and is missing", images)
    for root in pinned:
        async for digest, kind in _lacking(content, root):
            if digest not in pieces:
                images = await broken_by(content, digest)
                pieces[digest] = MissingPiece(digest, kind, "a pinned image lacks it", images)
    return list(pieces.values())


async def holders(content: Content, digest: Digest) -> list[Target]:
    """Return the repositories to fetch a piece from, the likeliest last."""
    found = dict.fromkeys(image.target for image in await content.tags.pointing_to(digest))
    for parent in await content.graph.parents(digest):
        found |= dict.fromkeys(await content.links.holders(parent))
    own = dict.fromkeys(await content.links.holders(digest))
    return [*(target for target in found if target not in own), *own]


async def _lacking(content: Content, root: Digest) -> AsyncIterator[tuple[Digest, str | None]]:
    """Yield the pieces that are not held of the image at ``root``, with their types.

    Of an index only images whose manifest is held are completed: clients never requested others.
    """
    lists: dict[Digest, bool] = {}
    async for digest, parent, _ in walk([root], content.graph.listed):
        record = await content.record(digest)
        lists[digest] = record is not None and record.media_type in INDEX_TYPES
        if record is None and (parent is None or not lists[parent]):
            yield digest, "" if parent is None else None


async def _kind(content: Content, digest: Digest) -> str | None:
    """Return "" for a manifest and None for a blob, judging by the tags and manifests."""
    if await content.tags.pointing_to(digest):
        return ""
    parents = await content.records(await content.graph.parents(digest))
    return "" if any(one.media_type in INDEX_TYPES for one in parents.values()) else None
