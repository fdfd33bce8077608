"""Deletes rows about content that is gone, or when the file is too large.

Requests of clients and answers of upstreams create rows, so their number needs a limit. A reading
connection selects rows, page by page, and the writing one deletes them after a second check: they
may be needed meanwhile.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from proxy.core.errors import StorageError
from proxy.index.database import Database
from proxy.index.facts import Facts
from proxy.index.generations import EVERYTHING
from proxy.index.values import Row

AGES: Final = (30 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, -1.0)
"""Seconds without a confirmation, after which a row is deleted when the file is too large. The
last takes rows of this moment too: a hostile registry may confirm thousands a second."""

LOW_MARK: Final = 0.9
"""Share of the limit to which the file shrinks when rows are deleted."""

PAGE: Final = 1000

_IS_UNKNOWN: Final = """NOT EXISTS (SELECT 1 FROM blob WHERE digest = {0})
  AND NOT EXISTS (SELECT 1 FROM child WHERE digest = {0})"""
_OLD_LINKS: Final = f"""SELECT digest, repo FROM link
  WHERE (digest, repo) > (?, ?) AND linked_at < ? AND {_IS_UNKNOWN.format("link.digest")}
  ORDER BY digest, repo LIMIT ?"""
_OLD_TAGS: Final = f"""SELECT repo, tag, max(last_seen) FROM sighting s WHERE (repo, tag) > (?, ?)
  GROUP BY repo, tag HAVING max(last_seen) < ? AND NOT EXISTS (SELECT 1 FROM tag t
    WHERE t.repo = s.repo AND t.name = s.tag AND NOT ({_IS_UNKNOWN.format("t.digest")}))
  ORDER BY repo, tag LIMIT ?"""
_OLDEST_TAGS: Final = """SELECT repo, tag, max(last_seen) AS seen FROM sighting
  GROUP BY repo, tag ORDER BY seen LIMIT ?"""

Connection = sqlite3.Connection
log = structlog.get_logger(__name__)


def _old(db: Connection, query: str, after: Row, before: float) -> list[Row]:
    return db.execute(query, (*after, before, PAGE)).fetchall()


def _oldest_tags(db: Connection) -> list[Row]:
    return db.execute(_OLDEST_TAGS, (2 * PAGE,)).fetchall()


def _delete_links(db: Connection, links: list[Row]) -> int:
    unknown = _IS_UNKNOWN.format("link.digest")
    query = f"DELETE FROM link WHERE digest = ? AND repo = ? AND {unknown}"
    return db.executemany(query, links).rowcount


def _delete_tags(db: Connection, tags: list[Row]) -> int:
    """Delete tags and their history, except those that were seen again."""
    deleted = 0
    for *key, before in tags:
        query = "SELECT max(last_seen) FROM sighting WHERE repo = ? AND tag = ?"
        (seen,) = db.execute(query, key).fetchone()
        if seen is not None and seen <= before:
            db.execute("DELETE FROM tag WHERE repo = ? AND name = ?", key)
            db.execute("DELETE FROM sighting WHERE repo = ? AND tag = ?", key)
            deleted += 1
    return deleted


def _delete_rest(db: Connection) -> int:
    """Delete referrers of content that is neither held nor listed, and unused repositories."""
    query = f"DELETE FROM referrer WHERE {_IS_UNKNOWN.format('referrer.subject')}"
    deleted = db.execute(query).rowcount
    db.execute(
        """DELETE FROM repo WHERE id NOT IN (SELECT repo FROM tag UNION SELECT repo FROM sighting
        UNION SELECT repo FROM link UNION SELECT repo FROM referrer)"""
    )
    return deleted


_PASSES: Final = (
    (_OLD_LINKS, (b"", 0), _delete_links),
    (_OLD_TAGS, (0, ""), _delete_tags),
)
"""The query, the start of the first page, and the function that deletes a page."""


def prune(db: Connection, before: float) -> int:
    """Delete rows about content that is neither held nor listed; return how many.

    Only those that were confirmed before ``before``, Unix seconds.
    """
    deleted = 0
    for query, first, delete in _PASSES:
        after = first
        while rows := _old(db, query, after, before):
            deleted += delete(db, rows)
            after = rows[-1][:2]
    return deleted + _delete_rest(db)


class Pruner:
    """Deletes rows. ``max_bytes`` limits the file; ``file_bytes`` is its last measured size."""

    def __init__(self, facts: Facts, database: Database, *, max_bytes: float) -> None:
        self._facts = facts
        self._database = database
        self._max_bytes = max_bytes
        self.file_bytes = 0

    async def measure(self) -> None:
        """Read the size of the file."""
        with suppress(OSError):
            self.file_bytes = await self._facts.threads.run(self._database.file_bytes)

    async def prune(self, before: float) -> int:
        """Do as ``prune``, while others read and write. Raises ``StorageError``."""
        deleted = 0
        for query, first, delete in _PASSES:
            after = first
            while rows := await self._facts.page(_old, query, after, before):
                deleted += await self._delete(delete, rows)
                after = rows[-1][:2]
        return deleted + await self._delete(_delete_rest)

    async def keep_small(self, now: float) -> bool:
        """Delete the oldest rows if the file is too large; return True if it was.

        ``now`` is in Unix seconds.
        """
        try:
            await self._facts.threads.run(self._database.trim)
            await self.measure()
            if self.file_bytes <= self._max_bytes:
                return False
            rows = await self._shrink(now)
        except (StorageError, sqlite3.Error, OSError) as error:
            log.warning("the index cannot be made smaller", error=str(error))
        else:
            log.warning("the index was too large", rows_forgotten=rows, bytes=self.file_bytes)
        return True

    async def _shrink(self, now: float) -> int:
        """Delete rows of content that is not held, the oldest first; then tags of held content."""
        deleted = 0
        for age in AGES:
            if await self._is_small():
                return deleted
            deleted += await self.prune(now - age)
        while not await self._is_small():
            oldest = await self._facts.page(_oldest_tags)
            if not (forgotten := await self._delete(_delete_tags, oldest)):
                break
            deleted += forgotten
        return deleted

    async def _delete(self, work: Callable[..., int], *args: object) -> int:
        """Delete rows, and clear RAM, which does not have their numbers."""
        deleted: list[int] = []
        await self._facts.write({}, [EVERYTHING], work, *args, then=deleted.append)
        return sum(deleted)

    async def _is_small(self) -> bool:
        await self._facts.threads.run(self._database.shrink)
        await self.measure()
        return self.file_bytes <= self._max_bytes * LOW_MARK
