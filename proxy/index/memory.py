"""An index in RAM only: for a cache without a disk, and for tests.

It has the rows of ``SqliteIndex``, but no threads, no cache in front of them and no buffers: each
verb is one statement or a few. If the two answer differently, one of these parts is wrong.
"""

import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, Child, Clock, ImageSet, TagRecord, Usage
from proxy.index import Position, blob_rows, name_rows, retention, tree_rows, use_rows, values
from proxy.index.database import SCHEMA

_STEP = 1e-5

P = ParamSpec("P")
Result = TypeVar("Result")


def _verb(
    work: Callable[Concatenate[sqlite3.Connection, P], Result],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, Result]]:
    """Return the verb that does this work."""

    async def verb(self: "MemoryIndex", /, *args: P.args, **named: P.kwargs) -> Result:
        return work(self._db, *args, **named)

    return verb


class MemoryIndex:
    """An async context manager. Nothing is bounded, nothing suspends."""

    failure: str | None = None
    damaged: str | None = None
    file_bytes = 0
    dropped_rows = 0

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.executescript(SCHEMA)
        self._last_use = 0.0
        self.revision = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._db.close()

    records = _verb(blob_rows.records)
    parents = _verb(tree_rows.parents)
    add_loose_files = _verb(blob_rows.add_loose_files)
    delete_loose_files = _verb(blob_rows.delete_loose_files)
    loose_files = _verb(blob_rows.loose_files)
    trees = _verb(tree_rows.trees)
    weights = _verb(tree_rows.weights)
    listings = _verb(tree_rows.listings)
    listed_by_others = _verb(tree_rows.listed_by_others)
    last_uses = _verb(use_rows.last_uses)
    blobs = _verb(blob_rows.blobs)
    incomplete = _verb(blob_rows.incomplete)
    untagged = _verb(name_rows.untagged)
    linked_to = _verb(name_rows.linked_to)
    history = _verb(name_rows.history)
    add_history = _verb(name_rows.add_history)
    repositories = _verb(name_rows.repositories)
    search = _verb(name_rows.search)
    referrers = _verb(name_rows.referrers)
    add_referrer = _verb(name_rows.add_referrer)
    note = _verb(name_rows.note)
    set_note = _verb(name_rows.set_note)

    def usage(self) -> Usage:
        return blob_rows.usage(self._db)

    def touch(self, digest: Digest) -> None:
        self._last_use = max(self._clock(), self._last_use + _STEP)
        use_rows.use(self._db, [(digest, self._last_use)])

    def peek_blob(self, digest: Digest) -> BlobRecord | None:
        return blob_rows.records(self._db, [digest]).get(digest)

    def peek_tag(self, target: Target, tag: Tag) -> TagRecord | None:
        found: TagRecord | None = name_rows.tag(self._db, target, tag)["tag", target, tag]
        return found

    def peek_linked(self, target: Target, digest: Digest) -> bool:
        return target in name_rows.holders(self._db, digest)

    async def blob(self, digest: Digest) -> BlobRecord | None:
        return self.peek_blob(digest)

    async def children(self, digest: Digest) -> tuple[Child, ...] | None:
        listed: tuple[Child, ...] | None
        listed = blob_rows.children(self._db, digest)["children", digest]
        return listed

    async def set_blob(self, record: BlobRecord, children: Iterable[Child] | None = ()) -> None:
        listed = values.children(children, record)
        self._last_use = max(self._last_use, min(record.used_at, self._clock()))
        self.revision += bool(listed)
        blob_rows.put(self._db, record, listed)

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        self.revision += 1
        blob_rows.drop(self._db, digests)

    async def coldest(
        self, after: Position | None, limit: int
    ) -> list[tuple[Position, BlobRecord]]:
        while True:
            page = use_rows.coldest(self._db, after, limit)
            if not (late := use_rows.late(page)):
                return page
            use_rows.lift(self._db, late)

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        new = [digest for digest in digests if not self.peek_linked(target, digest)]
        held = blob_rows.records(self._db, new).values()
        self.revision += any(record.media_type is not None for record in held)
        name_rows.link(self._db, target, new, self._clock())

    async def linked(self, target: Target, digest: Digest) -> bool:
        return self.peek_linked(target, digest)

    async def holders(self, digest: Digest) -> list[Target]:
        return list(name_rows.holders(self._db, digest))

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        return self.peek_tag(target, tag)

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord | None) -> None:
        before = self.peek_tag(target, tag)
        self.revision += values.descriptor(before) != values.descriptor(record)
        name_rows.set_tag(self._db, target, tag, record)

    async def tags(self, target: Target) -> list[Tag]:
        return list(name_rows.tags(self._db, target))

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        self.revision += 1
        name_rows.unlink(self._db, target, digests)

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        self.revision += 1
        name_rows.forget_tag(self._db, target, tag)

    async def add_images(self, images: ImageSet) -> None:
        self.revision += 1
        self._db.execute("BEGIN")
        with self._db:
            name_rows.add_images(self._db, images, self._clock())

    async def prune(self, before: float) -> int:
        self.revision += 1
        return retention.prune(self._db, before)
