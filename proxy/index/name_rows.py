"""SQL about names: repositories and their links, tags and their history, referrers. Blocks."""

import json
import sqlite3
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, Final

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import (
    HISTORY_LIMIT,
    BlobRecord,
    ImageSet,
    TagHistoryEntry,
    TagRecord,
    merged_history,
)
from proxy.index import REFERRERS_BYTES, REFERRERS_LIMIT, TaggedImage, values
from proxy.index.values import Row, batches, marks, packed

_REPO: Final = "(SELECT id FROM repo WHERE upstream = ? AND name = ?)"
_IMAGE: Final = """r.upstream, r.name, t.name, t.media_type, t.digest, t.size, t.checked_at,
  b.digest, b.size, b.media_type, b.used_at, b.is_public,
  EXISTS (SELECT 1 FROM link l WHERE l.digest = t.digest AND l.repo = t.repo)"""
_BY_NAME: Final = f"""SELECT {_IMAGE} FROM repo r CROSS JOIN tag t ON t.repo = r.id
  LEFT JOIN blob b ON b.digest = t.digest"""
_BY_DIGEST: Final = f"""SELECT {_IMAGE} FROM tag t CROSS JOIN repo r ON r.id = t.repo
  LEFT JOIN blob b ON b.digest = t.digest"""
"""``CROSS JOIN`` makes SQLite read the tables in this order."""

Connection = sqlite3.Connection
Key = Hashable
"""Of a fact in RAM; see ``sqlite``."""


def repo(db: Connection, target: Target) -> int:
    """Return the number of a repository, which is created if needed."""
    db.execute("INSERT OR IGNORE INTO repo (upstream, name) VALUES (?, ?)", target)
    (found,) = db.execute(f"SELECT {_REPO}", target).fetchone()
    return int(found)


def link(db: Connection, target: Target, digests: Iterable[Digest], now: float) -> None:
    """Insert links from a repository to these digests."""
    number = repo(db, target)
    rows = ((packed(digest), number, now) for digest in digests)
    db.executemany("INSERT OR IGNORE INTO link VALUES (?, ?, ?)", rows)


def unlink(db: Connection, target: Target, digests: Iterable[Digest]) -> None:
    """Delete the links of a repository to these digests, and their referrers."""
    number = repo(db, target)
    for keys in batches(map(packed, digests)):
        these = marks(keys)
        query = f"DELETE FROM link WHERE repo = ? AND digest IN ({these})"
        db.execute(query, (number, *keys))
        query = (
            f"DELETE FROM referrer WHERE repo = ? AND (subject IN ({these}) OR digest IN ({these}))"
        )
        db.execute(query, (number, *keys, *keys))


def linked(db: Connection, target: Target, digest: Digest) -> dict[Key, Any]:
    """Return whether a repository has a link to content, and its record, by their keys."""
    row = db.execute(
        f"""SELECT b.digest, b.size, b.media_type, b.used_at, b.is_public,
        EXISTS (SELECT 1 FROM link WHERE digest = k.key AND repo = {_REPO})
        FROM (SELECT ? AS key) k LEFT JOIN blob b ON b.digest = k.key""",
        (*target, packed(digest)),
    ).fetchone()
    held = None if row[0] is None else values.blob(row[:5])
    return {("link", target, digest): row[5] == 1, ("blob", digest): held}


def holders(db: Connection, digest: Digest) -> tuple[Target, ...]:
    """Return the repositories with a link to this, the newest last."""
    query = """SELECT r.upstream, r.name FROM link l JOIN repo r ON r.id = l.repo
        WHERE l.digest = ? ORDER BY l.linked_at, l.repo"""
    return tuple(values.target(*row) for row in db.execute(query, (packed(digest),)))


def linked_to(db: Connection, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
    """Return the links of each repository that is wanted."""
    repos = db.execute("SELECT id, upstream, name FROM repo").fetchall()
    targets = {number: values.target(*names) for number, *names in repos}
    chosen = {number: target for number, target in targets.items() if wanted(target)}
    found: dict[Target, set[Digest]] = {}
    for key, number in db.execute("SELECT digest, repo FROM link") if chosen else ():
        if number in chosen:
            found.setdefault(chosen[number], set()).add(values.digest(key))
    return found


def tag(db: Connection, target: Target, name: Tag) -> dict[Key, Any]:
    """Return the record of a tag, and the facts that its request needs next, by their keys."""
    key = ("tag", target, name)
    row = db.execute(
        f"{_BY_NAME} WHERE r.upstream = ? AND r.name = ? AND t.name = ?", (*target, name)
    ).fetchone()
    if row is None:
        return {key: None}
    image = _image(row)
    link = ("link", target, image.digest)
    return {key: image.record, link: image.is_linked, ("blob", image.digest): image.held}


def set_tag(db: Connection, target: Target, tag: Tag, record: TagRecord | None) -> None:
    """Write the record of a tag, and extend its history; None: delete the record."""
    if record is None:
        db.execute(f"DELETE FROM tag WHERE repo = {_REPO} AND name = ?", (*target, tag))
        return
    number, key, seen = repo(db, target), packed(record.descriptor.digest), record.checked_at
    found = record.descriptor
    row = (number, tag, found.media_type, key, found.size, seen)
    db.execute("INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?, ?, ?)", row)
    last = db.execute(
        "SELECT id, digest FROM sighting WHERE repo = ? AND tag = ? ORDER BY id DESC LIMIT 1",
        (number, tag),
    ).fetchone()
    if last is not None and last[1] == key:
        db.execute("UPDATE sighting SET last_seen = ? WHERE id = ?", (seen, last[0]))
        return
    sighting = (number, tag, key, seen, seen)
    db.execute("INSERT INTO sighting VALUES (NULL, ?, ?, ?, ?, ?)", sighting)
    db.execute(
        """DELETE FROM sighting WHERE id IN (SELECT id FROM sighting WHERE repo = ? AND tag = ?
        ORDER BY id DESC LIMIT -1 OFFSET ?)""",
        (number, tag, HISTORY_LIMIT),
    )


def add_history(
    db: Connection, target: Target, tag: Tag, entries: Iterable[TagHistoryEntry]
) -> None:
    """Merge the history of another cache into a tag's history."""
    number, merged = repo(db, target), merged_history((*history(db, target, tag), *entries))
    db.execute("DELETE FROM sighting WHERE repo = ? AND tag = ?", (number, tag))
    rows = (
        (number, tag, packed(entry.digest), entry.first_seen, entry.last_seen)
        for entry in merged[-HISTORY_LIMIT:]
    )
    db.executemany("INSERT INTO sighting VALUES (NULL, ?, ?, ?, ?, ?)", rows)


def add_images(db: Connection, images: ImageSet, now: float) -> None:
    """Write images, what refers to them, and notes."""
    for target, digests in images.links.items():
        link(db, target, digests, now)
    for target, subject, entry in images.referrers:
        add_referrer(db, target, subject, entry)
    for (target, tag), entries in images.history.items():
        add_history(db, target, tag, entries)
    for (target, tag), record in images.tags.items():
        set_tag(db, target, tag, record)
    for name, value in images.notes.items():
        set_note(db, name, value)


def forget_tag(db: Connection, target: Target, tag: Tag) -> None:
    """Delete a tag and its history."""
    set_tag(db, target, tag, None)
    db.execute(f"DELETE FROM sighting WHERE repo = {_REPO} AND tag = ?", (*target, tag))


def tags(db: Connection, target: Target) -> tuple[Tag, ...]:
    """Return the tags of a repository, sorted."""
    query = f"SELECT name FROM tag WHERE repo = {_REPO} ORDER BY name"
    return tuple(values.tag(name) for (name,) in db.execute(query, target))


def history(db: Connection, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
    """Return a tag's history, the latest last."""
    rows = db.execute(
        f"""SELECT digest, first_seen, last_seen FROM sighting
        WHERE repo = {_REPO} AND tag = ? ORDER BY id""",
        (*target, tag),
    )
    return tuple(
        TagHistoryEntry(values.digest(key), values.seconds(first), values.seconds(last))
        for key, first, last in rows
    )


def repositories(db: Connection) -> list[Target]:
    """Return the repositories with tags, sorted."""
    query = """SELECT upstream, name FROM repo r WHERE EXISTS (SELECT 1 FROM tag WHERE repo = r.id)
        ORDER BY upstream, name"""
    return [values.target(*row) for row in db.execute(query)]


def search(
    db: Connection, after: tuple[Target, Tag] | None, limit: int, digest: Digest | None = None
) -> list[TaggedImage]:
    """Return a page of all tags, or of those that point to a digest."""
    (upstream, name), last = after or (("", ""), "")
    if digest is not None:
        query = f"""{_BY_DIGEST} WHERE t.digest = ? AND (r.upstream, r.name, t.name) > (?, ?, ?)
            ORDER BY r.upstream, r.name, t.name LIMIT ?"""
        return [*map(_image, db.execute(query, (packed(digest), upstream, name, last, limit)))]
    # First those of the repository in which the last page ended: so SQLite uses its indexes.
    query = f"""{_BY_NAME} WHERE r.upstream = ? AND r.name = ? AND t.name > ?
        ORDER BY t.name LIMIT ?"""
    rows = db.execute(query, (upstream, name, last, limit)).fetchall()
    if len(rows) < limit:
        query = f"""{_BY_NAME} WHERE (r.upstream, r.name) > (?, ?)
            ORDER BY r.upstream, r.name, t.name LIMIT ?"""
        rows += db.execute(query, (upstream, name, limit - len(rows)))
    return [*map(_image, rows)]


def untagged(db: Connection, after: Digest | None, limit: int) -> list[tuple[Target, BlobRecord]]:
    """Return a page of held manifests that nothing names or lists, each with its first holder."""
    query = """SELECT r.upstream, r.name, b.digest, b.size, b.media_type, b.used_at, b.is_public
        FROM blob b JOIN repo r ON r.id = (SELECT repo FROM link WHERE digest = b.digest LIMIT 1)
        WHERE b.lists IS NOT 0 AND b.lists > 0 AND b.digest > ?
        AND NOT EXISTS (SELECT 1 FROM child WHERE digest = b.digest)
        AND NOT EXISTS (SELECT 1 FROM tag t JOIN link l ON l.digest = t.digest AND l.repo = t.repo
            WHERE t.digest = b.digest)
        ORDER BY b.digest LIMIT ?"""
    rows = db.execute(query, (b"" if after is None else packed(after), limit))
    return [(values.target(*row[:2]), values.blob(row[2:])) for row in rows]


def referrers(db: Connection, target: Target, subject: Digest) -> tuple[dict[str, object], ...]:
    """Return the referrers of a manifest."""
    query = f"SELECT entry FROM referrer WHERE repo = {_REPO} AND subject = ? ORDER BY id"
    rows = db.execute(query, (*target, packed(subject)))
    return tuple(values.entry(entry) for (entry,) in rows)


def add_referrer(db: Connection, target: Target, subject: Digest, entry: dict[str, object]) -> None:
    """Add an entry as the newest of a subject, and delete the oldest beyond the limit."""
    number, key, text = repo(db, target), packed(subject), json.dumps(entry)
    row = (number, key, packed(values.digest_text(entry["digest"])), text)
    db.execute("INSERT OR REPLACE INTO referrer VALUES (NULL, ?, ?, ?, ?)", row)
    query = """SELECT id, length(entry) FROM referrer WHERE repo = ? AND subject = ?
        ORDER BY id DESC"""
    total, surplus = 0, []
    for count, (id_, length) in enumerate(db.execute(query, (number, key))):
        total += length
        if count >= REFERRERS_LIMIT or total > REFERRERS_BYTES:
            surplus.append((id_,))
    db.executemany("DELETE FROM referrer WHERE id = ?", surplus)


def note(db: Connection, name: str) -> Any:
    """Return the note with a name, as JSON values."""
    row = db.execute("SELECT value FROM note WHERE name = ?", (name,)).fetchone()
    return None if row is None else values.json_text(row[0])


def notes(db: Connection, names: Collection[str]) -> dict[str, Any]:
    """Return the notes with these names, as JSON values."""
    found = {name: note(db, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def set_note(db: Connection, name: str, value: object) -> None:
    """Store a JSON value as a note."""
    db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (name, json.dumps(value)))


def _image(row: Row) -> TaggedImage:
    record = values.tag_record(row[3:7])
    held = None if row[7] is None else values.blob(row[7:12])
    return TaggedImage(values.target(*row[:2]), values.tag(row[2]), record, held, row[12] == 1)
