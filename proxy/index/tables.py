"""The index's tables; the format of their rows is in ``rows``. Everything here blocks."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.core.errors import ConfigError, StorageError
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import ReferrersRecord, TagHistoryEntry, TagRecord
from proxy.index import rows
from proxy.index.rows import Held, Referred, Tagged
from proxy.index.table import Table, make_private

HISTORY_LIMIT: Final = 50
HOLDERS_LIMIT: Final = 10_000
REFERRERS_LIMIT: Final = 10_000
REFERRERS_BYTES: Final = 4 * 1024 * 1024
"""As large as a manifest that all clients read: a list of referrers is one."""


log = structlog.get_logger(__name__)


class Tables:
    """Five tables: tags with their history, links, blobs, referrers, and notes."""

    def __init__(self, directory: Path) -> None:
        """Open the files. Raises ``ConfigError``, ``StorageError``."""
        _prepare(directory)
        self._tags = Table(directory / "tags")
        self._links = Table(directory / "links")
        self._blobs = Table(directory / "blobs")
        self._referrers = Table(directory / "referrers")
        self._notes = Table(directory / "notes", is_durable=True)

        self._all = (self._tags, self._links, self._blobs, self._referrers, self._notes)

    def close(self) -> None:
        """Close the files."""
        for table in self._all:
            table.close()

    @property
    def dropped(self) -> int:
        """Rows that could not be read and are deleted."""
        return sum(table.dropped for table in self._all)

    def file_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(table.file_bytes for table in self._all)

    def shrink(self) -> None:
        """Give the room of deleted rows back to the file system."""
        for table in self._all:
            table.shrink()

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
        return self._tag_row(target, tag).record

    def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        """Return a tag's sightings, latest last."""
        return tuple(self._tag_row(target, tag).history)

    def set_tag(self, target: Target, tag: Tag, record: TagRecord) -> None:
        """Write where a tag points, and lengthen its history."""
        _, history = self._tag_row(target, tag)
        digest, seen = record.descriptor.digest, record.checked_at
        if history and history[-1].digest == digest:
            history[-1] = TagHistoryEntry(digest, history[-1].first_seen, seen)
        else:
            history.append(TagHistoryEntry(digest, seen, seen))
        self._write_tag(target, tag, record, history[-HISTORY_LIMIT:])

    def drop_tag(self, target: Target, tag: Tag) -> None:
        """Forget where a tag points, and keep its history."""
        row = self._tag_row(target, tag)
        if row.record is not None:
            self._write_tag(target, tag, None, row.history)

    def forget_tags(self, tags: Iterable[tuple[Target, Tag]]) -> None:
        """Forget tags and their history."""
        self._tags.delete([*target, tag] for target, tag in tags)

    def all_tags(self) -> Iterator[list[Tagged]]:
        """Yield batches of all tags, those that point nowhere any more included."""
        return self._tags.batches(rows.tagged)

    def referrers(self, target: Target, subject: Digest) -> ReferrersRecord:
        """Return what is known to refer to a manifest: told by upstream, and held here."""
        return self._referrers_row(target, subject).record

    def set_referrers(self, target: Target, subject: Digest, record: ReferrersRecord) -> None:
        """Write what upstream says refers to a manifest; the first are kept."""
        _, _, held = self._referrers_row(target, subject)
        told = _latest(record.entries[::-1])[::-1]
        self._referrers.set([([*target, subject], [record.checked_at, told, held])])

    def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Add one that is held to what refers to a manifest."""
        checked_at, told, held = self._referrers_row(target, subject)
        others = [other for other in held if other["digest"] != entry["digest"]]
        row = [checked_at, told, _latest([*others, entry])]
        self._referrers.set([([*target, subject], row)])

    def subjects(self) -> Iterator[list[Referred]]:
        """Yield batches of what something is known to refer to."""
        return self._referrers.batches(rows.referred)

    def forget_subjects(self, subjects: Iterable[Referred]) -> None:
        """Forget what refers to these."""
        self._referrers.delete([*row.target, row.subject] for row in subjects)

    def holders(self, digests: Iterable[Digest]) -> dict[Digest, list[Target]]:
        """Return the repositories known to hold each digest."""
        return {digest: self._links.get(digest, [], rows.holders) for digest in digests}

    def set_holders(self, holders: dict[Digest, list[Target]]) -> None:
        """Write who holds what; the newest holders are kept."""
        self._links.set(
            (digest, [list(target) for target in targets[-HOLDERS_LIMIT:]])
            for digest, targets in holders.items()
        )

    def all_holders(self) -> Iterator[list[tuple[Digest, list[Target]]]]:
        """Yield batches of who is known to hold each digest."""
        return self._links.batches(lambda key, row: (rows.digest(key), rows.holders(row)))

    def linked(self) -> Iterator[list[Digest]]:
        """Yield batches of all digests that are known to be held by some repository."""
        return self._links.batches(lambda key, _: rows.digest(key))

    def forget_holders(self, digests: Iterable[Digest]) -> None:
        """Forget who holds these."""
        self._links.delete(digests)

    def blob(self, digest: Digest) -> Held | None:
        """Return the row of held content."""
        found: Held | None = self._blobs.get(digest, None, lambda row: rows.held(digest, row))
        return found

    def all_blobs(self) -> Iterator[list[Held]]:
        """Yield batches of all held content, in no order."""
        return self._blobs.batches(rows.held)

    def set_blobs(self, held: Iterable[Held]) -> None:
        """Write rows in one transaction."""
        self._blobs.set((one.record.digest, rows.held_row(one)) for one in held)

    def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Forget that content is held."""
        self._blobs.delete(digests)

    def _referrers_row(self, target: Target, subject: Digest) -> rows.Referrers:
        nothing = rows.Referrers(None, [], [])
        found: rows.Referrers = self._referrers.get([*target, subject], nothing, rows.referrers)
        return found

    def _tag_row(self, target: Target, tag: Tag) -> rows.Pointed:
        found: rows.Pointed = self._tags.get([*target, tag], rows.Pointed(None, []), rows.pointed)
        return found

    def _write_tag(
        self, target: Target, tag: Tag, record: TagRecord | None, history: list[TagHistoryEntry]
    ) -> None:
        self._tags.set([([*target, tag], rows.tag_row(record, history))])


def _latest(entries: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Return the last entries that are neither too many nor too large together."""
    found: list[dict[str, object]] = []
    size = 0
    for entry in reversed(entries[-REFERRERS_LIMIT:]):
        size += len(json.dumps(entry))
        if size > REFERRERS_BYTES:
            break
        found.append(entry)
    return found[::-1]


def opened(directory: Path, on_trouble: Callable[[], None]) -> tuple[Tables, Path | None]:
    """Return the tables, and None when they lie in ``directory``.

    When the disk fails they lie in a temporary directory, which is returned: it is to be removed.
    Raises ``ConfigError``, ``StorageError``.
    """
    try:
        return Tables(directory), None
    except StorageError as error:
        on_trouble()
        instead = Path(tempfile.mkdtemp(prefix="millpond-index-"))
        log.error(
            "the index cannot be opened; what is learnt now is lost at the next start",
            error=str(error),
            instead=str(instead),
        )
    try:
        return Tables(instead), instead
    except (StorageError, ConfigError):
        shutil.rmtree(instead, ignore_errors=True)
        raise


def _prepare(directory: Path) -> None:
    """Make the directory of all tables, for this user alone."""
    if os.path.expandvars(directory) != str(directory):
        raise ConfigError(f"storage.path: {directory}: the path may not hold $NAME of a variable")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(directory)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        reason = error.strerror
        raise ConfigError(f"storage.path: {directory} cannot be opened: {reason}") from None
    except OSError as error:
        raise StorageError(f"making {directory}: {error}") from error
