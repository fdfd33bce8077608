"""The index's tables and the format of their rows. Everything here blocks."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from proxy.index.table import Table
from proxy.names import Digest, Repo, Tag, Target
from proxy.records import BlobRecord, Child, Descriptor, ReferrersRecord, Sighting, TagRecord

HISTORY_LIMIT: Final = 50
HOLDERS_LIMIT: Final = 10_000
REFERRERS_LIMIT: Final = 10_000


class Held(NamedTuple):
    """A row of held content; ``children`` None: a row of an older layout, which had none."""

    record: BlobRecord
    children: tuple[Child, ...] | None


class Tagged(NamedTuple):
    """A row of where a tag points, if it still does, and when it was last seen."""

    target: Target
    tag: Tag
    record: TagRecord | None
    seen_at: float


class Referred(NamedTuple):
    """A row of what refers to a manifest, without the referrers."""

    target: Target
    subject: Digest
    checked_at: float


class Tables:
    """Five tables: tags with their history, links, blobs, referrers, and notes."""

    def __init__(self, directory: Path) -> None:
        """Open the files. Raises ``ConfigError``, ``StorageError``."""
        self._tags = Table(directory / "tags")
        self._links = Table(directory / "links")
        self._blobs = Table(directory / "blobs")
        self._referrers = Table(directory / "referrers")
        self._notes = Table(directory / "notes", is_durable=True)

    def close(self) -> None:
        """Close the files."""
        for table in (self._tags, self._links, self._blobs, self._referrers, self._notes):
            table.close()

    def damaged(self) -> list[str]:
        """Return what was damaged and is begun anew."""
        tables = {"tags": self._tags, "links": self._links, "blobs": self._blobs}
        tables |= {"referrers": self._referrers, "notes": self._notes}
        return [name for name, table in tables.items() if table.was_damaged]

    def note(self, name: str) -> Any:
        """Return what was noted under a name, as JSON values; None for nothing."""
        return self._notes.get(name)

    def set_note(self, name: str, value: object) -> None:
        """Note something; it survives a power cut."""
        self._notes.set([(name, value)])

    def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return where a tag points."""
        record, _ = self._tag_row(target, tag)
        return record

    def history(self, target: Target, tag: Tag) -> tuple[Sighting, ...]:
        """Return a tag's sightings, latest last."""
        return tuple(self._tag_row(target, tag)[1])

    def set_tag(self, target: Target, tag: Tag, record: TagRecord) -> None:
        """Write where a tag points, and lengthen its history."""
        _, history = self._tag_row(target, tag)
        digest, seen = record.descriptor.digest, record.checked_at
        if history and history[-1].digest == digest:
            history[-1] = Sighting(digest, history[-1].first_seen, seen)
        else:
            history.append(Sighting(digest, seen, seen))
        self._write_tag(target, tag, record, history[-HISTORY_LIMIT:])

    def drop_tag(self, target: Target, tag: Tag) -> None:
        """Forget where a tag points, and keep its history."""
        _, history = self._tag_row(target, tag)
        self._write_tag(target, tag, None, history)

    def forget_tags(self, tags: Iterable[tuple[Target, Tag]]) -> None:
        """Forget tags and their history."""
        self._tags.delete([*target, tag] for target, tag in tags)

    def all_tags(self) -> Iterator[list[Tagged]]:
        """Yield batches of all tags, those that point nowhere any more included."""
        return self._tags.batches(_tagged)

    def referrers(self, target: Target, subject: Digest) -> ReferrersRecord:
        """Return what is known to refer to a manifest: told by upstream, and held here."""
        checked_at, told, held = self._referrers_row(target, subject)
        known = {entry["digest"] for entry in told}
        return ReferrersRecord((*told, *(e for e in held if e["digest"] not in known)), checked_at)

    def set_referrers(self, target: Target, subject: Digest, record: ReferrersRecord) -> None:
        """Write what upstream says refers to a manifest; the first are kept."""
        _, _, held = self._referrers_row(target, subject)
        told = list(record.entries[:REFERRERS_LIMIT])
        self._referrers.set([([*target, subject], [record.checked_at, told, held])])

    def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Add one that is held to what refers to a manifest."""
        checked_at, told, held = self._referrers_row(target, subject)
        others = [other for other in held if other["digest"] != entry["digest"]]
        row = [checked_at, told, [*others, entry][-REFERRERS_LIMIT:]]
        self._referrers.set([([*target, subject], row)])

    def subjects(self) -> Iterator[list[Referred]]:
        """Yield batches of what something is known to refer to."""
        return self._referrers.batches(_referred)

    def forget_subjects(self, subjects: Iterable[Referred]) -> None:
        """Forget what refers to these."""
        self._referrers.delete([*row.target, row.subject] for row in subjects)

    def holders(self, digests: Iterable[Digest]) -> dict[Digest, list[Target]]:
        """Return the repositories known to hold each digest."""
        return {
            digest: [Target(upstream, Repo(repo)) for upstream, repo in self._links.get(digest, ())]
            for digest in digests
        }

    def set_holders(self, holders: dict[Digest, list[Target]]) -> None:
        """Write who holds what; the newest holders are kept."""
        self._links.set(
            (digest, [list(target) for target in targets[-HOLDERS_LIMIT:]])
            for digest, targets in holders.items()
        )

    def all_holders(self) -> Iterator[list[tuple[Digest, list[Target]]]]:
        """Yield batches of who is known to hold each digest."""
        return self._links.batches(
            lambda key, row: (Digest(key), [Target(name, Repo(repo)) for name, repo in row])
        )

    def linked(self) -> Iterator[list[Digest]]:
        """Yield batches of all digests that are known to be held by some repository."""
        return self._links.batches(lambda key, _: Digest(key))

    def forget_holders(self, digests: Iterable[Digest]) -> None:
        """Forget who holds these."""
        self._links.delete(digests)

    def blob(self, digest: Digest) -> Held | None:
        """Return the row of held content."""
        row = self._blobs.get(digest)
        return None if row is None else _held(digest, row)

    def all_blobs(self) -> Iterator[list[Held]]:
        """Yield batches of all held content, in no order."""
        return self._blobs.batches(_held)

    def set_blobs(self, rows: Iterable[Held]) -> None:
        """Write rows in one transaction."""
        self._blobs.set((held.record.digest, _blob_row(held)) for held in rows)

    def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Forget that content is held."""
        self._blobs.delete(digests)

    def _referrers_row(
        self, target: Target, subject: Digest
    ) -> tuple[float | None, list[dict[str, object]], list[dict[str, object]]]:
        checked_at, told, held = self._referrers.get([*target, subject], (None, [], []))
        return checked_at, told, held

    def _tag_row(self, target: Target, tag: Tag) -> tuple[TagRecord | None, list[Sighting]]:
        row = self._tags.get([*target, tag])
        if row is None:
            return None, []
        now, history = row
        record = None if now is None else _tag_record(now)
        return record, [Sighting(Digest(digest), first, last) for digest, first, last in history]

    def _write_tag(
        self, target: Target, tag: Tag, record: TagRecord | None, history: list[Sighting]
    ) -> None:
        now = None
        if record is not None:
            about = record.descriptor
            now = [about.media_type, about.digest, about.size, record.checked_at]
        seen = [[entry.digest, entry.first_seen, entry.last_seen] for entry in history]
        self._tags.set([([*target, tag], [now, seen])])


def _tag_record(row: list[Any]) -> TagRecord:
    media_type, digest, size, checked_at = row
    return TagRecord(Descriptor(sys.intern(media_type), Digest(digest), size), checked_at)


def _tagged(key: list[str], row: list[Any]) -> Tagged:
    upstream, repo, tag = key
    now, history = row
    seen_at = history[-1][2] if history else 0.0
    record = None if now is None else _tag_record(now)
    return Tagged(Target(upstream, Repo(repo)), Tag(tag), record, seen_at)


def _referred(key: list[str], row: list[Any]) -> Referred:
    upstream, repo, digest = key
    return Referred(Target(upstream, Repo(repo)), Digest(digest), row[0] or 0.0)


def _held(digest: str, row: list[Any]) -> Held:
    size, media_type, used_at, *rest = row
    children = None
    if rest:
        children = tuple(Child(Digest(child), size) for child, size in rest[0])
    is_public = len(rest) > 1 and rest[1] is True  # older rows end before it
    return Held(BlobRecord(Digest(digest), size, media_type, used_at, is_public), children)


def _blob_row(held: Held) -> list[object]:
    record, children = held
    row: list[object] = [record.size, record.media_type, record.used_at]
    if children is not None:
        row += [[list(child) for child in children], record.is_public]
    return row
