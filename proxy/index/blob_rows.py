"""SQL about held content and its children. Blocks."""

import sqlite3
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from proxy.core.names import Digest
from proxy.core.records import BlobRecord, Child, Usage
from proxy.index import use_rows, values
from proxy.index.use_rows import Times
from proxy.index.values import batches, marks, packed

_COLUMNS: Final = "digest, size, media_type, used_at, is_public"
Connection = sqlite3.Connection
Key = Hashable
"""Of a fact in RAM; see ``sqlite``."""


class Stored(NamedTuple):
    """The changes of storing a blob besides its own row."""

    uses: Times
    """New times of last use."""

    resized: set[Digest]
    """Manifests that list it, or what it lists, with another size."""


def usage(db: Connection) -> Usage:
    """Return the usage of held content."""
    query = "SELECT count(*), total((size + 4095) / 4096) FROM blob INDEXED BY blob_used"
    files, blocks = db.execute(query).fetchone()
    return Usage(files, int(blocks) * 4096)


def records(db: Connection, digests: Iterable[Digest]) -> dict[Digest, BlobRecord]:
    """Return the records of the held digests."""
    found = {}
    for keys in batches(map(packed, digests)):
        query = f"SELECT {_COLUMNS} FROM blob WHERE digest IN ({marks(keys)})"
        for record in map(values.blob, db.execute(query, keys)):
            found[record.digest] = record
    return found


def children(db: Connection, digest: Digest) -> dict[Key, Any]:
    """Return the children of a held manifest (None: unknown), and their records, by their keys.

    A child that is not held has the smallest size in any manifest.
    """
    row = db.execute("SELECT id, lists FROM blob WHERE digest = ?", (packed(digest),)).fetchone()
    if row is None or not row[1]:
        return {("children", digest): None if row is not None and row[1] is None else ()}
    query = """SELECT c.digest,
        coalesce(b.size, (SELECT min(size) FROM child WHERE digest = c.digest)),
        b.digest, b.size, b.media_type, b.used_at, b.is_public
        FROM child c LEFT JOIN blob b ON b.digest = c.digest WHERE c.parent = ? ORDER BY position"""
    rows = db.execute(query, row[:1]).fetchall()
    listed = tuple(Child(values.digest(key), values.size(size)) for key, size, *_ in rows)
    held = (None if one[2] is None else values.blob(one[2:]) for one in rows)
    facts: dict[Key, Any] = {
        ("blob", child.digest): record for child, record in zip(listed, held, strict=True)
    }
    return facts | {("children", digest): listed}


def blobs(db: Connection, after: Digest | None, limit: int) -> list[BlobRecord]:
    """Return a page in the order of the digests."""
    query = f"SELECT {_COLUMNS} FROM blob WHERE digest > ? ORDER BY digest LIMIT ?"
    return [values.blob(row) for row in db.execute(query, (_key(after), limit))]


def incomplete(db: Connection, after: Digest | None, limit: int) -> list[Digest]:
    """Return a page of the manifests of which it is unknown what they list."""
    query = """SELECT digest FROM blob WHERE lists IS NOT 0 AND lists IS NULL AND digest > ?
        ORDER BY digest LIMIT ?"""
    return [values.digest(key) for (key,) in db.execute(query, (_key(after), limit))]


def put(db: Connection, record: BlobRecord, listed: Sequence[Child] | None) -> Stored:
    """Insert or update held content; ``listed`` is None if its children are unknown."""
    key = packed(record.digest)
    uses = use_rows.lift(db, use_rows.owed(db, record.digest))
    above = use_rows.latest_above(db, record.digest)
    used_at = record.used_at if above is None else max(record.used_at, above)
    id_ = insert(db, replace(record, used_at=used_at), listed)
    query = """SELECT p.digest FROM child mine JOIN child c ON c.digest = mine.digest
        AND c.size <> mine.size JOIN blob p ON p.id = c.parent WHERE mine.parent = ?
        UNION SELECT p.digest FROM child c JOIN blob p ON p.id = c.parent
        WHERE c.digest = ? AND c.size <> ?
        UNION SELECT ? FROM child mine JOIN blob b ON b.digest = mine.digest
        AND b.size <> mine.size WHERE mine.parent = ?"""
    rows = db.execute(query, (id_, key, record.size, key, id_))
    resized = {values.digest(one) for (one,) in rows}
    if resized:
        resized.add(record.digest)
    uses[record.digest] = used_at
    if listed:
        uses |= use_rows.use(db, [(record.digest, used_at)])
    return Stored(uses, resized)


def insert(db: Connection, record: BlobRecord, listed: Sequence[Child] | None) -> int:
    """Write the rows of content; return the number of the first."""
    key, lists = packed(record.digest), None if listed is None else len(listed)
    db.execute(
        f"""INSERT INTO blob ({_COLUMNS}, lists) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (digest) DO UPDATE SET size = excluded.size, lists = excluded.lists,
        media_type = excluded.media_type, used_at = excluded.used_at,
        is_public = excluded.is_public""",
        (key, record.size, record.media_type, record.used_at, record.is_public, lists),
    )
    db.execute("DELETE FROM loose WHERE digest = ?", (key,))
    (id_,) = db.execute("SELECT id FROM blob WHERE digest = ?", (key,)).fetchone()
    db.execute("DELETE FROM child WHERE parent = ?", (id_,))
    rows = ((id_, at, packed(child.digest), child.size) for at, child in enumerate(listed or ()))
    db.executemany("INSERT INTO child VALUES (?, ?, ?, ?)", rows)
    return int(id_)


def drop(db: Connection, digests: Iterable[Digest]) -> Times:
    """Delete content; its file is loose. Returns the new last uses of what it lists."""
    uses: Times = {}
    for digest in digests:
        key = packed(digest)
        uses |= use_rows.lift(db, use_rows.owed(db, digest))
        db.execute("INSERT OR IGNORE INTO loose VALUES (?)", (key,))
        row = db.execute("SELECT id FROM blob WHERE digest = ?", (key,)).fetchone()
        if row is not None:
            db.execute("DELETE FROM child WHERE parent = ?", row)
            db.execute("DELETE FROM blob WHERE id = ?", row)
    return uses


def add_loose_files(db: Connection, digests: Iterable[Digest]) -> None:
    """Remember that files may be there without a row."""
    db.executemany("INSERT OR IGNORE INTO loose VALUES (?)", ((packed(one),) for one in digests))


def delete_loose_files(db: Connection, digests: Iterable[Digest]) -> None:
    """Forget loose files."""
    db.executemany("DELETE FROM loose WHERE digest = ?", ((packed(one),) for one in digests))


def loose_files(db: Connection) -> list[Digest]:
    """Return whose files may be there without a row."""
    return [values.digest(key) for (key,) in db.execute("SELECT digest FROM loose")]


def _key(digest: Digest | None) -> bytes:
    return b"" if digest is None else packed(digest)
