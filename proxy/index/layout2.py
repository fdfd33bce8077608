"""Takes over an index of storage layout 2: one SQLite file for each of five tables.

A row's key and value are JSON in a zlib frame, as diskcache wrote them. Another program may have
written the files: a value of any other kind may run code or lead to another file, and is left out,
as is every row that makes no sense. Lists that an upstream gave are not taken over. Blocks.
"""

import json
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import structlog

from proxy.core.records import Child
from proxy.index import name_rows, salvage, values
from proxy.index.values import packed

TABLES: Final = ("tags", "links", "blobs", "referrers", "notes")

_ROUNDS: Final = 3
"""An index of indexes of manifests is as deep as manifests get."""

_MAX_ROW: Final = 64 * 1024 * 1024
_LIFT: Final = """UPDATE blob SET used_at = new.used_at FROM (
  SELECT c.digest AS digest, max(p.used_at) + 1e-6 AS used_at
  FROM child c JOIN blob p ON p.id = c.parent GROUP BY c.digest) AS new
  WHERE new.digest = blob.digest AND new.used_at > blob.used_at"""
_UNREADABLE: Final = (ValueError, TypeError, LookupError, OverflowError, RecursionError, zlib.error)

log = structlog.get_logger(__name__)


def copy(directory: Path, new: sqlite3.Connection) -> None:
    """Copy what the tables say, if there are any. Raises ``sqlite3.Error`` for the new file."""
    if not any(_file(directory, table).exists() for table in TABLES):
        return
    taking = _TakeOver(directory, new)
    taking.blobs()
    taking.tags()
    taking.links()
    taking.referrers()
    taking.notes()
    log.info("index of the former layout taken over", unreadable_rows=taking.dropped)


def remove(directory: Path) -> None:
    """Delete the tables: all that they said is in the new file, which is on the disk."""
    for table in (*TABLES, "listings"):
        for path in (directory / table, *directory.glob(f"{table}.unreadable-*")):
            shutil.rmtree(path, ignore_errors=True)


class _TakeOver:
    def __init__(self, directory: Path, new: sqlite3.Connection) -> None:
        self._directory = directory
        self._new = new
        self._now = time.time()
        self._repos: dict[tuple[str, str], int] = {}
        self.dropped = 0

    def blobs(self) -> None:
        for key, row in self._rows("blobs"):
            try:
                self._blob(key, row)
            except _UNREADABLE:
                self.dropped += 1
        for _ in range(_ROUNDS):  # a use of a manifest was written for that alone
            if not self._new.execute(_LIFT).rowcount:
                break

    def _blob(self, key: Any, row: Any) -> None:
        size, media_type, used_at, *rest = row
        digest = values.digest_text(key)
        kind = None if media_type is None else values.media_type(media_type)
        listed: tuple[Child, ...] | None
        try:  # rows of older versions end before the children
            entries = [Child(values.digest_text(child), size) for child, size in rest[0]]
            listed = values.children(entries, digest)
        except _UNREADABLE:
            listed = None if kind is not None else ()
        is_public = len(rest) > 1 and rest[1] is True
        lists = None if listed is None else len(listed)
        cursor = self._new.execute(
            """INSERT OR IGNORE INTO blob (digest, size, media_type, used_at, is_public, lists)
            VALUES (?, ?, ?, ?, ?, ?)""",
            (packed(digest), values.size(size), kind, values.seconds(used_at), is_public, lists),
        )
        self._new.executemany(
            "INSERT OR IGNORE INTO child (parent, position, digest, size) VALUES (?, ?, ?, ?)",
            (
                (cursor.lastrowid, position, packed(child.digest), child.size)
                for position, child in enumerate(listed or ())
            ),
        )

    def tags(self) -> None:
        for key, row in self._rows("tags"):
            try:
                self._tag(key, row)
            except _UNREADABLE:
                self.dropped += 1

    def _tag(self, key: Any, row: Any) -> None:
        upstream, name, tag = key
        now, history = row
        repo, tag = self._repo(upstream, name), values.tag(tag)
        sightings = [
            (repo, tag, packed(values.digest_text(digest)), *map(values.seconds, times))
            for digest, *times in history
        ]
        if any(len(one) != len(sightings[0]) or len(one) != 5 for one in sightings):
            raise ValueError("a sighting has two times")
        if now is not None:
            media_type, digest, size, checked_at = now
            digest = packed(values.digest_text(digest))
            kind, checked_at = values.media_type(media_type), values.seconds(checked_at)
            self._new.execute(
                "INSERT OR IGNORE INTO tag VALUES (?, ?, ?, ?, ?, ?)",
                (repo, tag, kind, digest, values.size(size), checked_at),
            )
        self._new.executemany(
            """INSERT INTO sighting (repo, tag, digest, first_seen, last_seen)
            VALUES (?, ?, ?, ?, ?)""",
            sightings,
        )

    def links(self) -> None:
        for key, row in self._rows("links"):
            try:
                digest = packed(values.digest_text(key))
                repos = [self._repo(upstream, name) for upstream, name in row]
            except _UNREADABLE:
                self.dropped += 1
                continue
            self._new.executemany(
                "INSERT OR IGNORE INTO link (digest, repo, linked_at) VALUES (?, ?, ?)",
                ((digest, repo, self._now + age * 1e-6) for age, repo in enumerate(repos)),
            )

    def referrers(self) -> None:
        for key, row in self._rows("referrers"):
            try:
                upstream, name, subject = key
                target = values.target(upstream, name)
                digest = values.digest_text(subject)
                entries = [values.entry(json.dumps(entry)) for entry in row[2]]
            except _UNREADABLE:
                self.dropped += 1
                continue
            for entry in entries:
                name_rows.add_referrer(self._new, target, digest, entry)

    def notes(self) -> None:
        for name, value in self._rows("notes"):
            try:
                if name == "pins":
                    name_rows.set_pins(self._new, [values.text(pin) for pin in value])
                elif name != "ceiling":  # it bounded what was held before all rows were read
                    name_rows.set_note(self._new, values.text(name), value)
            except _UNREADABLE:
                self.dropped += 1

    def _repo(self, upstream: Any, name: Any) -> int:
        target = values.target(upstream, name)
        if target not in self._repos:
            self._repos[target] = name_rows.repo(self._new, target)
        return self._repos[target]

    def _rows(self, table: str) -> Iterator[tuple[Any, Any]]:
        """Yield keys and values."""
        path = _file(self._directory, table)
        if not path.exists():
            return
        with closing(_connect(path)) as old:
            columns = "key, raw, mode, filename, value"
            for row in salvage.rows(old, "Cache", columns, "rowid"):
                try:
                    pair = _pair(*row)
                except _UNREADABLE:
                    self.dropped += 1
                else:
                    yield pair


def _file(directory: Path, table: str) -> Path:
    return directory / table / "cache.db"


def _connect(path: Path) -> sqlite3.Connection:
    """Return a connection that reads; the journal of a killed program counts."""
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    connection.execute("PRAGMA trusted_schema = 0")
    return connection


def _pair(key: Any, raw: Any, mode: Any, filename: Any, value: Any) -> tuple[Any, Any]:
    if raw != 1 or mode != 1 or filename is not None:
        raise ValueError("the row is not JSON")
    return _from_json(key), _from_json(value)


def _from_json(data: bytes) -> Any:
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(data, _MAX_ROW)
    if not decompressor.eof:
        raise ValueError("the row is cut off, or too large")
    return json.loads(text)
