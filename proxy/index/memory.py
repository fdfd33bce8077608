"""An index in RAM alone: for a cache without a disk, and for tests."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import (
    BlobRecord,
    Child,
    Clock,
    TagHistoryEntry,
    TagRecord,
    Usage,
    disk_bytes,
)
from proxy.index import (
    HISTORY_LIMIT,
    REFERRERS_BYTES,
    REFERRERS_LIMIT,
    Position,
    TaggedImage,
    values,
)
from proxy.index.blob_rows import AFTER
from proxy.index.values import packed

_STEP = 1e-5


class MemoryIndex:
    """An async context manager. Nothing is bounded, nothing suspends."""

    failure: str | None = None
    damaged: str | None = None
    file_bytes = 0
    dropped_rows = 0

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._blobs: dict[Digest, BlobRecord] = {}
        self._serials: dict[Digest, int] = {}
        self._children: dict[Digest, tuple[Child, ...] | None] = {}
        self._sizes: dict[Digest, int] = {}
        self._links: dict[Digest, dict[Target, float]] = {}
        self._tags: dict[tuple[Target, Tag], TagRecord] = {}
        self._history: dict[tuple[Target, Tag], tuple[TagHistoryEntry, ...]] = {}
        self._referrers: dict[tuple[Target, Digest], dict[str, dict[str, object]]] = {}
        self._notes: dict[str, str] = {}
        self._pins: list[str] | None = None
        self._loose: set[Digest] = set()
        self._serial = 0
        self._last_use = 0.0
        self.revision = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def usage(self) -> Usage:
        return Usage(len(self._blobs), sum(disk_bytes(one.size) for one in self._blobs.values()))

    def touch(self, digest: Digest) -> None:
        self._last_use = max(self._clock(), self._last_use + _STEP)
        self._use(digest, self._last_use)

    def peek_blob(self, digest: Digest) -> BlobRecord | None:
        return self._blobs.get(digest)

    def peek_tag(self, target: Target, tag: Tag) -> TagRecord | None:
        return self._tags.get((target, tag))

    def peek_linked(self, target: Target, digest: Digest) -> bool:
        return target in self._links.get(digest, ())

    async def blob(self, digest: Digest) -> BlobRecord | None:
        return self._blobs.get(digest)

    async def records(self, digests: Iterable[Digest]) -> dict[Digest, BlobRecord]:
        return {digest: self._blobs[digest] for digest in digests if digest in self._blobs}

    async def children(self, digest: Digest) -> tuple[Child, ...] | None:
        listed = self._children.get(digest, ())
        return None if listed is None else tuple(self._sized(child) for child in listed)

    async def parents(self, digest: Digest) -> list[Digest]:
        return list(self._listing(digest))

    async def set_blob(self, record: BlobRecord, children: Iterable[Child] | None = ()) -> None:
        digest, listed = record.digest, None
        values.size(record.size)
        if children is not None or record.media_type is None:
            listed = values.children(children or (), digest)
        self._last_use = max(self._last_use, min(record.used_at, self._clock()))
        above = [self._blobs[parent].used_at + AFTER for parent in self._listing(digest)]
        self._blobs[digest] = replace(record, used_at=max(record.used_at, *above, record.used_at))
        if digest not in self._serials:
            self._serial += 1
            self._serials[digest] = self._serial
        self._loose.discard(digest)
        self._children[digest] = listed
        self._sizes[digest] = record.size
        for child in listed or ():
            if child.digest not in self._blobs:
                known = self._sizes.get(child.digest, child.size)
                self._sizes[child.digest] = min(known, child.size)
        self.revision += bool(listed)
        self._use(digest, record.used_at)

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        self.revision += 1
        for digest in digests:
            self._loose.add(digest)
            self._blobs.pop(digest, None)
            self._serials.pop(digest, None)
            listed = self._children.pop(digest, ()) or ()
            for one in (digest, *(child.digest for child in listed)):
                if one not in self._blobs and not any(self._listing(one)):
                    self._sizes.pop(one, None)

    async def loosen_files(self, digests: Iterable[Digest]) -> None:
        self._loose.update(digests)

    async def forget_files(self, digests: Iterable[Digest]) -> None:
        self._loose.difference_update(digests)

    async def loose_files(self) -> list[Digest]:
        return list(self._loose)

    async def coldest(
        self, after: Position | None, limit: int
    ) -> list[tuple[Position, BlobRecord]]:
        order = sorted(
            ((one.used_at, self._serials[one.digest]), one.digest) for one in self._blobs.values()
        )
        page = [row for row in order if after is None or row[0] > after][:limit]
        return [(position, self._blobs[digest]) for position, digest in page]

    async def blobs(self, after: Digest | None, limit: int) -> list[BlobRecord]:
        return [self._blobs[one] for one in _page(self._blobs, after, limit)]

    async def incomplete(self, after: Digest | None, limit: int) -> list[Digest]:
        unknown = [digest for digest, listed in self._children.items() if listed is None]
        return _page(unknown, after, limit)

    async def untagged(self, after: Digest | None, limit: int) -> list[tuple[Target, BlobRecord]]:
        named = {
            record.descriptor.digest
            for (target, _), record in self._tags.items()
            if self.peek_linked(target, record.descriptor.digest)
        }
        found = [
            digest
            for digest, listed in self._children.items()
            if listed
            and digest not in named
            and self._links.get(digest)
            and not any(self._listing(digest))
        ]
        page = _page(found, after, limit)
        return [(next(iter(self._links[digest])), self._blobs[digest]) for digest in page]

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        for digest in digests:
            held = self._blobs.get(digest)
            if not self.peek_linked(target, digest):
                self.revision += held is not None and held.media_type is not None
                self._links.setdefault(digest, {})[target] = self._clock()

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        self.revision += 1
        gone = set(digests)
        for digest in gone:
            self._links.get(digest, {}).pop(target, None)
        for (holder, subject), entries in list(self._referrers.items()):
            if holder == target:
                kept = {one: entry for one, entry in entries.items() if one not in gone}
                self._referrers[holder, subject] = {} if subject in gone else kept

    async def linked(self, target: Target, digest: Digest) -> bool:
        return self.peek_linked(target, digest)

    async def holders(self, digest: Digest) -> list[Target]:
        return list(self._links.get(digest, ()))

    async def linked_to(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        found: dict[Target, set[Digest]] = {}
        for digest, targets in self._links.items():
            for target in filter(wanted, targets):
                found.setdefault(target, set()).add(digest)
        return found

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        return self._tags.get((target, tag))

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord) -> None:
        before = self._tags.get((target, tag))
        self.revision += before is None or before.descriptor != record.descriptor
        self._tags[target, tag] = record
        history = self._history.get((target, tag), ())
        digest, seen = record.descriptor.digest, record.checked_at
        first = seen
        if history and history[-1].digest == digest:
            first, history = history[-1].first_seen, history[:-1]
        history = (*history, TagHistoryEntry(digest, first, seen))
        self._history[target, tag] = history[-HISTORY_LIMIT:]

    async def drop_tag(self, target: Target, tag: Tag) -> None:
        self.revision += self._tags.pop((target, tag), None) is not None

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        self.revision += 1
        self._tags.pop((target, tag), None)
        self._history.pop((target, tag), None)

    async def tags(self, target: Target) -> list[Tag]:
        return sorted(tag for holder, tag in self._tags if holder == target)

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        return self._history.get((target, tag), ())

    async def repositories(self) -> list[Target]:
        return sorted({target for target, _ in self._tags})

    async def search(
        self, after: tuple[Target, Tag] | None, limit: int, digest: Digest | None = None
    ) -> list[TaggedImage]:
        found = []
        for key in sorted(self._tags):
            record = self._tags[key]
            points_to = record.descriptor.digest
            if (after is None or key > after) and digest in (None, points_to):
                held, linked = self._blobs.get(points_to), self.peek_linked(key[0], points_to)
                found.append(TaggedImage(*key, record, held, linked))
        return found[:limit]

    async def referrers(self, target: Target, subject: Digest) -> tuple[dict[str, object], ...]:
        return tuple(self._referrers.get((target, subject), {}).values())

    async def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        entries = self._referrers.setdefault((target, subject), {})
        digest = values.digest_text(entry["digest"])
        entries.pop(digest, None)
        entries[digest] = entry
        size = sum(len(json.dumps(one)) for one in entries.values())
        while len(entries) > REFERRERS_LIMIT or size > REFERRERS_BYTES:
            size -= len(json.dumps(entries.pop(next(iter(entries)))))

    async def note(self, name: str) -> Any:
        return json.loads(self._notes.get(name, "null"))

    async def set_note(self, name: str, value: object) -> None:
        self._notes[name] = json.dumps(value)

    async def pins(self) -> list[str] | None:
        return None if self._pins is None else list(self._pins)

    async def set_pins(self, names: Iterable[str]) -> None:
        self._pins = list(dict.fromkeys(names))

    async def prune(self, before: float) -> int:
        self.revision += 1
        known = self._blobs.keys() | {child.digest for child in self._all_children()}
        links = [
            (digest, target)
            for digest, targets in self._links.items()
            for target, linked_at in targets.items()
            if digest not in known and linked_at < before
        ]
        for digest, target in links:
            del self._links[digest][target]
        tags = [
            key
            for key, history in self._history.items()
            if history[-1].last_seen < before
            and not (key in self._tags and self._tags[key].descriptor.digest in known)
        ]
        for key in tags:
            self._tags.pop(key, None)
            del self._history[key]
        subjects = [key for key in self._referrers if key[1] not in known]
        entries = sum(len(self._referrers.pop(key)) for key in subjects)
        return len(links) + len(tags) + entries

    def _all_children(self) -> Iterator[Child]:
        for listed in self._children.values():
            yield from listed or ()

    def _listing(self, digest: Digest) -> Iterator[Digest]:
        for parent, listed in self._children.items():
            if listed and any(child.digest == digest for child in listed):
                yield parent

    def _sized(self, child: Child) -> Child:
        return Child(child.digest, self._sizes[child.digest])

    def _use(self, digest: Digest, used_at: float, above: tuple[Digest, ...] = ()) -> None:
        """Count a use of content and of all below it; a circle, if there were one, ends."""
        record = self._blobs.get(digest)
        if record is None or digest in above:
            return
        used_at = max(used_at, record.used_at)
        self._blobs[digest] = replace(record, used_at=used_at)
        for child in self._children.get(digest) or ():
            self._use(child.digest, used_at + AFTER, (*above, digest))


def _page(digests: Iterable[Digest], after: Digest | None, limit: int) -> list[Digest]:
    order = sorted(digests, key=packed)
    return [one for one in order if after is None or packed(one) > packed(after)][:limit]
