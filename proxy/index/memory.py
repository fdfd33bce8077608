"""An index in RAM alone: for a cache without a disk, and for tests.

It has the rows of ``SqliteIndex``, but no threads, no cache in front of them and no buffers: each
verb is one statement or a few. Where the two answer differently, one of these parts is wrong.
"""

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Self

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, Child, Clock, TagHistoryEntry, TagRecord, Usage
from proxy.index import Position, TaggedImage, blob_rows, name_rows, retention, values
from proxy.index.database import SCHEMA

_STEP = 1e-5


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

    def usage(self) -> Usage:
        return blob_rows.usage(self._db)

    def touch(self, digest: Digest) -> None:
        self._last_use = max(self._clock(), self._last_use + _STEP)
        blob_rows.use(self._db, [(digest, self._last_use)])

    def peek_blob(self, digest: Digest) -> BlobRecord | None:
        return blob_rows.records(self._db, [digest]).get(digest)

    def peek_tag(self, target: Target, tag: Tag) -> TagRecord | None:
        found: TagRecord | None = name_rows.tag(self._db, target, tag)["tag", target, tag]
        return found

    def peek_linked(self, target: Target, digest: Digest) -> bool:
        return target in name_rows.holders(self._db, digest)

    async def blob(self, digest: Digest) -> BlobRecord | None:
        return self.peek_blob(digest)

    async def records(self, digests: Iterable[Digest]) -> dict[Digest, BlobRecord]:
        return blob_rows.records(self._db, digests)

    async def children(self, digest: Digest) -> tuple[Child, ...] | None:
        listed: tuple[Child, ...] | None
        listed = blob_rows.children(self._db, digest)["children", digest]
        return listed

    async def parents(self, digest: Digest) -> list[Digest]:
        return blob_rows.parents(self._db, digest)

    async def set_blob(self, record: BlobRecord, children: Iterable[Child] | None = ()) -> None:
        listed = values.children(children, record)
        self._last_use = max(self._last_use, min(record.used_at, self._clock()))
        self.revision += bool(listed)
        blob_rows.put(self._db, record, listed)

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        self.revision += 1
        blob_rows.drop(self._db, digests)

    async def loosen_files(self, digests: Iterable[Digest]) -> None:
        blob_rows.loosen(self._db, digests)

    async def forget_files(self, digests: Iterable[Digest]) -> None:
        blob_rows.forget_files(self._db, digests)

    async def loose_files(self) -> list[Digest]:
        return blob_rows.loose(self._db)

    async def coldest(
        self, after: Position | None, limit: int
    ) -> list[tuple[Position, BlobRecord]]:
        return blob_rows.coldest(self._db, after, limit)

    async def blobs(self, after: Digest | None, limit: int) -> list[BlobRecord]:
        return blob_rows.blobs(self._db, after, limit)

    async def incomplete(self, after: Digest | None, limit: int) -> list[Digest]:
        return blob_rows.incomplete(self._db, after, limit)

    async def untagged(self, after: Digest | None, limit: int) -> list[tuple[Target, BlobRecord]]:
        return name_rows.untagged(self._db, after, limit)

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        new = [digest for digest in digests if not self.peek_linked(target, digest)]
        held = blob_rows.records(self._db, new).values()
        self.revision += any(record.media_type is not None for record in held)
        name_rows.link(self._db, target, new, self._clock())

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        self.revision += 1
        name_rows.unlink(self._db, target, digests)

    async def linked(self, target: Target, digest: Digest) -> bool:
        return self.peek_linked(target, digest)

    async def holders(self, digest: Digest) -> list[Target]:
        return list(name_rows.holders(self._db, digest))

    async def linked_to(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        return name_rows.linked_to(self._db, wanted)

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        return self.peek_tag(target, tag)

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord | None) -> None:
        before = self.peek_tag(target, tag)
        self.revision += values.descriptor(before) != values.descriptor(record)
        name_rows.set_tag(self._db, target, tag, record)

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        self.revision += 1
        name_rows.forget_tag(self._db, target, tag)

    async def tags(self, target: Target) -> list[Tag]:
        return list(name_rows.tags(self._db, target))

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        return name_rows.history(self._db, target, tag)

    async def repositories(self) -> list[Target]:
        return name_rows.repositories(self._db)

    async def search(
        self, after: tuple[Target, Tag] | None, limit: int, digest: Digest | None = None
    ) -> list[TaggedImage]:
        return name_rows.search(self._db, after, limit, digest)

    async def referrers(self, target: Target, subject: Digest) -> tuple[dict[str, object], ...]:
        return name_rows.referrers(self._db, target, subject)

    async def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        name_rows.add_referrer(self._db, target, subject, entry)

    async def note(self, name: str) -> Any:
        return name_rows.note(self._db, name)

    async def set_note(self, name: str, value: object) -> None:
        name_rows.set_note(self._db, name, value)

    async def prune(self, before: float) -> int:
        self.revision += 1
        return retention.prune(self._db, before)
