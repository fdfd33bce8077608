"""SQL about held manifests as trees: their content, and its held bytes. Blocks."""

import sqlite3
from collections.abc import Iterable, Set
from typing import Final, NamedTuple

from proxy.core.manifests import INDEX_TYPES, MAX_WEIGHED_DEPTH
from proxy.core.names import Digest
from proxy.core.records import BLOCK, disk_bytes
from proxy.index import Tree, Weight, values
from proxy.index.values import batches, marks, packed

Connection = sqlite3.Connection

MAX_TREE: Final = 20_000
"""Maximum number of digests below one manifest that are weighed."""

_TREE: Final = """WITH RECURSIVE tree (digest) AS (VALUES (?) UNION
    SELECT c.digest FROM tree JOIN blob p ON p.digest = tree.digest
    JOIN child c ON c.parent = p.id LIMIT ?)"""
_NO_LIMIT: Final = -1
_BLOCKS: Final = f"total((b.size + {BLOCK - 1}) / {BLOCK})"
_MANIFESTS: Final = f"""SELECT k.digest, m.id, m.size, m.media_type, m.lists,
    count(c.digest) - count(b.digest), {_BLOCKS}
    FROM %s k LEFT JOIN blob m ON m.digest = k.digest LEFT JOIN child c ON c.parent = m.id
    LEFT JOIN blob b ON b.digest = c.digest WHERE %s GROUP BY k.digest"""
_LISTED: Final = _MANIFESTS % ("child", "k.parent = ?")


class _Manifest(NamedTuple):
    """What is held of a manifest and of what it lists; ``lists`` is None if that is unknown."""

    digest: Digest
    id: int | None
    size: int | None
    media_type: str | None
    lists: int | None
    missing: int
    blocks: float

    @property
    def is_index(self) -> bool:
        """Each manifest that it lists is one of several alternatives."""
        return self.media_type in INDEX_TYPES and self.lists is not None


def parents(db: Connection, digest: Digest) -> list[Digest]:
    """Return the held manifests that list this."""
    query = "SELECT b.digest FROM child c JOIN blob b ON b.id = c.parent WHERE c.digest = ?"
    return [values.digest(key) for (key,) in db.execute(query, (packed(digest),))]


def listed_by_others(
    db: Connection, digests: Iterable[Digest], besides: Set[Digest]
) -> set[Digest]:
    """Return those of ``digests`` that a held manifest lists that is not in ``besides``."""
    return {one for one in digests if not besides >= set(parents(db, one))}


def listings(db: Connection, digests: Iterable[Digest]) -> dict[Digest, int]:
    """Return how many held manifests list each of these."""
    query = "SELECT count(*) FROM child WHERE digest = ?"
    return {one: db.execute(query, (packed(one),)).fetchone()[0] for one in digests}


def trees(db: Connection, digests: Iterable[Digest]) -> dict[Digest, Tree]:
    """Return the tree of each of these."""
    query = f"{_TREE} SELECT tree.digest, b.size FROM tree LEFT JOIN blob b USING (digest)"
    found: dict[Digest, Tree] = {}
    for root in digests:
        rows = db.execute(query, (packed(root), _NO_LIMIT))
        found[root] = {values.digest(key): disk_bytes(values.size(size or 0)) for key, size in rows}
    return found


def weights(db: Connection, digests: Iterable[Digest]) -> dict[Digest, Weight]:
    """Return the weight of each of these that is held."""
    found: dict[Digest, Weight] = {}
    missing = _Missing(db)
    for keys in batches(map(packed, digests)):
        query = _MANIFESTS % ("blob", f"k.digest IN ({marks(keys)})")
        for manifest in _manifests(db, query, keys):
            found[manifest.digest] = Weight(_bytes(db, manifest), missing.of(manifest, 0))
    return found


def _manifests(db: Connection, query: str, keys: Iterable[object]) -> list[_Manifest]:
    rows = db.execute(query, tuple(keys)).fetchall()
    return [_Manifest(values.digest(key), *facts) for key, *facts in rows]


def _bytes(db: Connection, manifest: _Manifest) -> int:
    """Return the disk bytes of what is held of a tree; shared content once."""
    if not manifest.is_index:
        return disk_bytes(values.size(manifest.size)) + int(manifest.blocks) * BLOCK
    query = f"{_TREE} SELECT {_BLOCKS} FROM tree JOIN blob b ON b.digest = tree.digest"
    (blocks,) = db.execute(query, (packed(manifest.digest), MAX_TREE)).fetchone()
    return int(blocks) * BLOCK


class _Missing:
    """Counts missing pieces; remembers those below each index, which many others may list."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._known: dict[tuple[Digest, int], int] = {}

    def of(self, manifest: _Manifest, depth: int) -> int:
        """Return how many pieces are missing, of an index those of its most complete image."""
        if manifest.id is None or manifest.lists is None or depth == MAX_WEIGHED_DEPTH:
            return 1
        if not manifest.is_index:
            return manifest.missing
        known = self._known.get((manifest.digest, depth))
        if known is None:
            below = _manifests(self._db, _LISTED, [manifest.id])
            known = min((self.of(one, depth + 1) for one in below), default=0)
            self._known[manifest.digest, depth] = known
        return known
