"""Finds what images lack: pieces that were lost here, and pieces of pinned images.

A piece is lost when it was set aside or deleted because it had gone bad. Other pieces that are not
held are no loss: nobody has asked for them, or they were evicted.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from proxy.content.content import Content
from proxy.core.errors import DigestInvalid
from proxy.core.manifests import INDEX_TYPES
from proxy.core.names import Digest, Target, parse_digest
from proxy.core.tolerant_json import as_list, read_object
from proxy.index import Index
from proxy.runtime.executors import in_thread
from proxy.services.inventory import broken_by

MAX_LOST: Final = 1000
"""Most lost pieces that are remembered; the oldest are forgotten first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Content that an image lacks. ``media_type`` is None for a blob, "" for an unknown type."""

    digest: Digest
    media_type: str | None
    reason: str
    images: list[str]


class Lost:
    """What was set aside and not fetched again: media types by digest, None for a blob."""

    def __init__(self, noted: object) -> None:
        """Take what an earlier ``to_json`` returned; rows of another shape are left out."""
        self._types: dict[Digest, str | None] = {}
        for row in as_list(noted):
            match row:
                case [str(text), str() | None as media_type]:
                    self._add(text, media_type)

    def to_json(self) -> list[list[str | None]]:
        """Return the newest ``MAX_LOST`` as JSON values."""
        return [[digest, kind] for digest, kind in list(self._types.items())[-MAX_LOST:]]

    def add(self, digest: Digest, media_type: str | None) -> None:
        """Remember a piece."""
        self._types[digest] = media_type

    def discard(self, digest: Digest) -> None:
        """Forget a piece, if it is known."""
        self._types.pop(digest, None)

    def merge(self, notes: Iterable[str]) -> None:
        """Add what the notes in quarantine name."""
        for note in notes:
            document = read_object(note.encode())
            known = document.get("media_type")
            self._add(str(document.get("digest")), known if isinstance(known, str) else None)

    def types(self) -> Mapping[Digest, str | None]:
        """Return the media type of each piece."""
        return self._types

    def _add(self, text: str, media_type: str | None) -> None:
        try:
            digest = parse_digest(text)
        except DigestInvalid:
            return
        if self._types.get(digest) is None:
            self._types[digest] = media_type


async def find(content: Content, lost: Lost, pinned: Iterable[Digest]) -> list[Piece]:
    """Return what images lack now; forget what was lost and is held, or belongs to no image."""
    index = content.index
    lost.merge(await in_thread(content.store.quarantine.notes))
    pieces = {}
    for digest, media_type in list(lost.types().items()):
        await asyncio.sleep(0)  # each of these looks at all manifests and tags
        images = [] if index.held(digest) is not None else broken_by(index, digest)
        if not images:
            lost.discard(digest)
            continue
        kind = media_type if media_type is not None else _kind(index, digest)
        pieces[digest] = Piece(digest, kind, "it was set aside and is missing", images)
    for root in pinned:
        for digest, kind in list(_lacking(index, root)):
            if digest not in pieces:
                await asyncio.sleep(0)
                images = broken_by(index, digest)
                pieces[digest] = Piece(digest, kind, "a pinned image lacks it", images)
    return list(pieces.values())


async def holders(index: Index, digest: Digest) -> list[Target]:
    """Return the repositories to fetch a piece from, the likeliest last."""
    found = dict.fromkeys(
        target for target, _, record in index.tagged() if record.descriptor.digest == digest
    )
    for parent in index.parents(digest):
        found |= dict.fromkeys(await index.holders(parent))
    own = dict.fromkeys(await index.holders(digest))
    return [*(target for target in found if target not in own), *own]


def _lacking(index: Index, root: Digest) -> Iterator[tuple[Digest, str | None]]:
    """Yield the pieces that are not held of the image at ``root``, with their types.

    Of an index only the images are completed whose manifest is held: the others were never wanted.
    """
    todo, seen = [root], {root}
    if index.held(root) is None:
        yield root, ""
    while todo:
        parent = index.held(digest := todo.pop())
        is_list = parent is not None and parent.media_type in INDEX_TYPES
        for child in index.children(digest):
            if child.digest in seen:
                continue
            seen.add(child.digest)
            if index.held(child.digest) is not None:
                todo.append(child.digest)
            elif not is_list:
                yield child.digest, None


def _kind(index: Index, digest: Digest) -> str | None:
    """Return "" for a manifest and None for a blob, as far as tags and manifests tell."""
    if any(record.descriptor.digest == digest for _, _, record in index.tagged()):
        return ""
    records = (index.held(parent) for parent in index.parents(digest))
    return "" if any(r is not None and r.media_type in INDEX_TYPES for r in records) else None
