"""SQL about last uses of held content. Blocks.

A use of a manifest counts as a use of everything below it, each a moment later than what lists it:
an image is then evicted manifest first, and what a warmer image shares with it stays.

Manifests get their time at once. An image has ten blobs or more, so theirs are written late: when
they are about to be evicted (``coldest``), and before a manifest that lists them is dropped or
changes (``owed``). Until then the time in the row of a blob may be too early, and its last use is
the latest of that time and those of the manifests that list it.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final

from proxy.core.names import Digest
from proxy.core.records import BlobRecord
from proxy.index import Position, values
from proxy.index.values import Row, batches, marks, packed

AFTER: Final = 1e-6
"""Seconds by which content counts as used later than a manifest that lists it."""

_DEPTH: Final = 100
"""Manifests in manifests. A circle, which no honest digests make, ends there."""

_FIRST: Final = (-1e300, -1)
_PAIRS: Final = 250
"""Times that one statement writes: other threads of Python run while it does."""

_ABOVE: Final = "SELECT max(p.used_at) FROM child c JOIN blob p ON p.id = c.parent WHERE c.digest ="
_LAST_USE: Final = f"""CASE WHEN b.lists = 0
  THEN max(b.used_at, coalesce(({_ABOVE} b.digest) + {AFTER}, b.used_at)) ELSE b.used_at END"""

Connection = sqlite3.Connection
Times = dict[Digest, float]


def latest_above(db: Connection, digest: Digest) -> float | None:
    """Return the earliest time for content that held manifests list; None if none does."""
    (found,) = db.execute(f"{_ABOVE} ?", (packed(digest),)).fetchone()
    return None if found is None else found + AFTER


def coldest(
    db: Connection, after: Position | None, limit: int
) -> list[tuple[Position, BlobRecord]]:
    """Return a page in the order of the times in the rows; the records have the last uses.

    The page is valid if none of them is ``late``.
    """
    query = f"""SELECT used_at, id, digest, size, media_type, {_LAST_USE}, is_public
        FROM blob b INDEXED BY blob_used
        WHERE (used_at, id) > (?, ?) ORDER BY used_at, id LIMIT ?"""
    rows = db.execute(query, (*(after or _FIRST), limit))
    return [((row[0], row[1]), values.blob(row[2:])) for row in rows]


def late(page: Iterable[tuple[Position, BlobRecord]]) -> list[tuple[Digest, float]]:
    """Return the times that are later than the position; ``lift`` writes them."""
    return [(record.digest, record.used_at) for (at, _), record in page if record.used_at > at]


def last_uses(db: Connection, digests: Iterable[Digest]) -> Times:
    """Return the last uses of the held digests."""
    found: Times = {}
    for keys in batches(map(packed, digests)):
        query = f"SELECT b.digest, {_LAST_USE} FROM blob b WHERE b.digest IN ({marks(keys)})"
        rows = db.execute(query, keys)
        found |= {values.digest(key): values.seconds(used_at) for key, used_at in rows}
    return found


def use(db: Connection, uses: Sequence[tuple[Digest, float]]) -> Times:
    """Count uses; return the times that were written, or were not because there is a later one.

    A manifest gives its time to the manifests below it at once.
    """
    changed = dict(uses)
    for start in range(0, len(uses), _PAIRS):
        some = uses[start : start + _PAIRS]
        lift(db, some)
        query = f"""SELECT DISTINCT p.id FROM blob p CROSS JOIN child c ON c.parent = p.id
            CROSS JOIN blob b INDEXED BY blob_manifest ON b.digest = c.digest AND b.lists IS NOT 0
            WHERE p.lists > 0 AND p.digest IN ({marks(some)})"""
        manifests = db.execute(query, [packed(digest) for digest, _ in some]).fetchall()
        for _ in range(_DEPTH):
            if not manifests:
                break
            manifests = _lift_below(db, manifests, changed)
    return changed


def _lift_below(db: Connection, manifests: list[Row], changed: Times) -> list[Row]:
    """Set the last use of the manifests below some; return those that have changed.

    One that was used late enough needs no change, and neither does any below it.
    """
    query = f"""SELECT p.used_at + {AFTER} AS later, b.id, b.digest
        FROM blob p CROSS JOIN child c ON c.parent = p.id
        CROSS JOIN blob b INDEXED BY blob_manifest ON b.digest = c.digest AND b.lists IS NOT 0
        WHERE p.id = ? AND b.used_at < later"""
    lifted: dict[int, Row] = {}
    for manifest in manifests:
        for later, id_, key in db.execute(query, manifest).fetchall():
            db.execute("UPDATE blob SET used_at = ? WHERE id = ?", (later, id_))
            changed[values.digest(key)] = later
            lifted[id_] = (id_,)
    return [*lifted.values()]


def owed(db: Connection, digest: Digest) -> list[tuple[Digest, float]]:
    """Return the times that the blobs of a manifest have only because it lists them."""
    query = f"""SELECT b.digest, p.used_at + {AFTER} AS later FROM blob p
        JOIN child c ON c.parent = p.id JOIN blob b ON b.digest = c.digest
        WHERE p.digest = ? AND p.lists > 0 AND b.used_at < later"""
    rows = db.execute(query, (packed(digest),))
    return [(values.digest(key), values.seconds(later)) for key, later in rows]


def lift(db: Connection, times: Sequence[tuple[Digest, float]]) -> Times:
    """Write times of last use, except those before the time in the row; return all."""
    for start in range(0, len(times), _PAIRS):
        some = times[start : start + _PAIRS]
        pairs = ", ".join(["(?, ?)"] * len(some))
        query = f"""WITH new (digest, used_at) AS (VALUES {pairs})
            UPDATE blob SET used_at = new.used_at FROM new
            WHERE blob.digest = new.digest AND blob.used_at < new.used_at"""
        db.execute(query, [*chain(*((packed(digest), at) for digest, at in some))])
    return dict(times)


def held_trees(db: Connection, roots: Iterable[Digest]) -> list[Digest]:
    """Return what is held of some content and everything below it, each once."""
    query = """WITH RECURSIVE tree (digest) AS (VALUES (?) UNION
        SELECT c.digest FROM tree JOIN blob p ON p.digest = tree.digest
        JOIN child c ON c.parent = p.id) SELECT digest FROM tree JOIN blob USING (digest)"""
    found: dict[Digest, None] = {}
    for root in roots:
        rows = db.execute(query, (packed(root),))
        found |= {values.digest(key): None for (key,) in rows}
    return [*found]
