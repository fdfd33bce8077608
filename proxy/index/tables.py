"""The index's SQLite files and the format of their rows, through diskcache.

Rows are JSON: diskcache's default pickles (CVE-2025-69872), and its default limits would delete
rows of ours at 1 GB. Everything here blocks; ``index.local`` calls it from one worker thread.
"""

import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import DatabaseError, OperationalError
from typing import Any, Final

import structlog
from diskcache import Cache, JSONDisk, Timeout

from proxy.errors import ConfigError
from proxy.names import Digest, Repo, Tag, Target
from proxy.records import BlobRecord, Descriptor, ReferrersRecord, Sighting, TagRecord

HISTORY_LIMIT: Final = 50
HOLDERS_LIMIT: Final = 10_000
REFERRERS_LIMIT: Final = 10_000
UNREADABLE: Final = (ValueError, TypeError, LookupError, zlib.error)

log = structlog.get_logger(__name__)


class Tables:
    """Four tables: tags with their history, links, blobs, referrers."""

    def __init__(self, directory: Path) -> None:
        """Open the files; damaged ones are set aside and begun anew.

        Raises ``ConfigError`` when they cannot be opened for another reason.
        """
        try:
            self._open(directory)
        except (OperationalError, Timeout, OSError) as error:
            raise ConfigError(f"storage.path: {directory} cannot be opened: {error}") from None
        except DatabaseError as error:
            aside = directory.with_name(f"{directory.name}.unreadable-{int(time.time())}")
            directory.rename(aside)
            log.error("index unreadable, begun anew", error=str(error), kept_as=str(aside))
            self._open(directory)

    def _open(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tags = _table(directory / "tags")
        self._links = _table(directory / "links")
        self._blobs = _table(directory / "blobs")
        self._referrers = _table(directory / "referrers")

    def close(self) -> None:
        """Close the files."""
        for table in (self._tags, self._links, self._blobs, self._referrers):
            table.close()

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

    def all_tags(self) -> Iterator[tuple[Target, Tag, TagRecord]]:
        """Iterate over all tags that point somewhere."""
        for key in _keys(self._tags):
            upstream, repo, tag = key
            target = Target(upstream, Repo(repo))
            with _tolerant(self._tags, key):
                if (record := self.tag(target, Tag(tag))) is not None:
                    yield target, Tag(tag), record

    def referrers(self, target: Target, subject: Digest) -> ReferrersRecord:
        """Return what is known to refer to a manifest: told by upstream, and held here."""
        checked_at, told, held = self._referrers_row(target, subject)
        known = {entry["digest"] for entry in told}
        return ReferrersRecord((*told, *(e for e in held if e["digest"] not in known)), checked_at)

    def set_referrers(self, target: Target, subject: Digest, record: ReferrersRecord) -> None:
        """Write what upstream says refers to a manifest; the first are kept."""
        _, _, held = self._referrers_row(target, subject)
        told = list(record.entries[:REFERRERS_LIMIT])
        self._referrers.set([*target, subject], [record.checked_at, told, held])

    def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Add one that is held to what refers to a manifest."""
        checked_at, told, held = self._referrers_row(target, subject)
        others = [other for other in held if other["digest"] != entry["digest"]]
        row = [checked_at, told, [*others, entry][-REFERRERS_LIMIT:]]
        self._referrers.set([*target, subject], row)

    def holders(self, digests: Iterable[Digest]) -> dict[Digest, list[Target]]:
        """Return the repositories known to hold each digest."""
        return {
            digest: [Target(upstream, Repo(repo)) for upstream, repo in self._links.get(digest, ())]
            for digest in digests
        }

    def set_holders(self, holders: dict[Digest, list[Target]]) -> None:
        """Write who holds what; the newest holders are kept."""
        with self._links.transact():
            for digest, targets in holders.items():
                self._links.set(digest, [list(target) for target in targets[-HOLDERS_LIMIT:]])

    def blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""
        row = self._blobs.get(digest)
        return None if row is None else BlobRecord(digest, *row)

    def all_blobs(self) -> Iterator[BlobRecord]:
        """Iterate over all held content, in no order."""
        for key in _keys(self._blobs):
            with _tolerant(self._blobs, key):
                if (record := self.blob(Digest(key))) is not None:
                    yield record

    def set_blobs(self, records: Iterable[BlobRecord]) -> None:
        """Write records in one transaction."""
        with self._blobs.transact():
            for record in records:
                row = [record.size, record.media_type, record.used_at]
                self._blobs.set(record.digest, row)

    def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Forget that content is held."""
        with self._blobs.transact():
            for digest in digests:
                self._blobs.delete(digest)

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
        record = None
        if now is not None:
            media_type, digest, size, checked_at = now
            record = TagRecord(Descriptor(media_type, Digest(digest), size), checked_at)
        return record, [Sighting(Digest(digest), first, last) for digest, first, last in history]

    def _write_tag(
        self, target: Target, tag: Tag, record: TagRecord | None, history: list[Sighting]
    ) -> None:
        now = None
        if record is not None:
            about = record.descriptor
            now = [about.media_type, about.digest, about.size, record.checked_at]
        seen = [[entry.digest, entry.first_seen, entry.last_seen] for entry in history]
        self._tags.set([*target, tag], [now, seen])


def _keys(table: Cache) -> Iterator[Any]:
    """Iterate over the keys that can be read."""
    keys = table.iterkeys()
    while True:
        try:
            yield next(keys)
        except StopIteration:
            return
        except UNREADABLE:
            log.error("index table cut short by an unreadable key", table=table.directory)
            return


@contextmanager
def _tolerant(table: Cache, key: object) -> Iterator[None]:
    """Drop a row that cannot be read, and go on with the others."""
    try:
        yield
    except UNREADABLE as error:
        log.error("unreadable index row dropped", table=table.directory, error=repr(error))
        table.delete(key)


def _table(directory: Path) -> Cache:
    return Cache(
        str(directory),
        disk=JSONDisk,
        disk_compress_level=0,
        disk_min_file_size=1 << 30,
        eviction_policy="none",
        cull_limit=0,
        tag_index=False,
        statistics=False,
    )
