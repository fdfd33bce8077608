"""Converts an index of storage layout 2: one SQLite file for each of five tables.

A row's key and value are JSON in a zlib frame, as diskcache wrote them. Another program may have
written the files: a value of any other kind may run code or lead to another file, and is ignored,
as is every malformed row. Lists from upstreams are not converted. Blocks.
"""

import json
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import structlog

from proxy.core.records import BlobRecord, Child
from proxy.index import blob_rows, name_rows, salvage, values
from proxy.index.values import Row, packed

_MAX_ROW: Final = 64 * 1024 * 1024
_ROUNDS: Final = 3
"""An index of indexes of manifests is as deep as manifests get."""

_LIFT: Final = """UPDATE blob SET used_at = new.used_at FROM (
  SELECT c.digest AS digest, max(p.used_at) + 1e-6 AS used_at
  FROM child c JOIN blob p ON p.id = c.parent GROUP BY c.digest) AS new
  WHERE new.digest = blob.digest AND new.used_at > blob.used_at"""
"""A use of a manifest was written for that alone, and counts for what it lists."""

_UNREADABLE: Final = (ValueError, TypeError, LookupError, OverflowError, RecursionError, zlib.error)

Connection = sqlite3.Connection
log = structlog.get_logger(__name__)


def copy(directory: Path, new: Connection) -> None:
    """Copy the rows of the tables, if there are any. Raises ``sqlite3.Error`` for the new file."""
    if not any(_file(directory, table).exists() for table in TABLES):
        return
    dropped = 0
    for table, add in TABLES.items():
        for row in _rows(_file(directory, table)):
            try:
                add(new, *_pair(*row))
            except _UNREADABLE:
                dropped += 1
    for _ in range(_ROUNDS):
        new.execute(_LIFT)
    log.info("index of an older layout converted", unreadable_rows=dropped)


def remove(directory: Path) -> None:
    """Delete the tables: the new file has all their rows and is on the disk."""
    for table in (*TABLES, "listings"):
        for path in (directory / table, *directory.glob(f"{table}.unreadable-*")):
            shutil.rmtree(path, ignore_errors=True)


def _blob(new: Connection, key: Any, row: Any) -> None:
    size, media_type, used_at, *rest = row
    digest = values.digest_text(key)
    kind = None if media_type is None else values.media_type(media_type)
    is_public = len(rest) > 1 and rest[1] is True
    record = BlobRecord(digest, values.size(size), kind, values.seconds(used_at), is_public)
    listed: tuple[Child, ...] | None
    try:  # rows of older versions end before the children
        entries = [Child(values.digest_text(child), size) for child, size in rest[0]]
        listed = values.children(entries, record)
    except _UNREADABLE:
        listed = values.children(None, record)
    blob_rows.insert(new, record, listed)


def _tag(new: Connection, key: Any, row: Any) -> None:
    upstream, name, tag = key
    now, history = row
    target, tag = values.target(upstream, name), values.tag(tag)
    sightings = [
        (packed(values.digest_text(digest)), values.seconds(first), values.seconds(last))
        for digest, first, last in history
    ]
    record = None
    if now is not None:
        media_type, digest, size, checked_at = now
        key = packed(values.digest_text(digest))
        record = values.tag_record((media_type, key, size, checked_at))
    name_rows.set_tag(new, target, tag, record)
    number = name_rows.repo(new, target)
    new.execute("DELETE FROM sighting WHERE repo = ? AND tag = ?", (number, tag))
    rows = ((number, tag, *sighting) for sighting in sightings)
    new.executemany("INSERT INTO sighting VALUES (NULL, ?, ?, ?, ?, ?)", rows)


def _links(new: Connection, key: Any, row: Any) -> None:
    digest = values.digest_text(key)
    for age, target in enumerate([values.target(upstream, name) for upstream, name in row]):
        name_rows.link(new, target, [digest], time.time() + age * 1e-6)


def _referrers(new: Connection, key: Any, row: Any) -> None:
    upstream, name, subject = key
    target, digest = values.target(upstream, name), values.digest_text(subject)
    for entry in [values.entry(json.dumps(entry)) for entry in row[2]]:
        name_rows.add_referrer(new, target, digest, entry)


def _note(new: Connection, name: Any, value: Any) -> None:
    if name == "pins":
        value = [values.text(pin) for pin in value]
    if name != "ceiling":  # it bounded what was held before all rows were read
        name_rows.set_note(new, values.text(name), value)


TABLES: Final[dict[str, Callable[[Connection, Any, Any], None]]] = {
    "blobs": _blob,
    "tags": _tag,
    "links": _links,
    "referrers": _referrers,
    "notes": _note,
}
"""What adds a row of each table; it changes nothing if it fails."""


def _file(directory: Path, table: str) -> Path:
    return directory / table / "cache.db"


def _rows(path: Path) -> Iterator[Row]:
    """Yield rows as diskcache stored them; the journal of a killed program counts."""
    if path.exists():
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as old:
            old.execute("PRAGMA trusted_schema = 0")
            columns = ["key", "raw", "mode", "filename", "value"]
            yield from salvage.rows(old, "Cache", columns, ["rowid"])


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
