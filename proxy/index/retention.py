"""Which rows are forgotten when content is gone, or when the file is too large.

Rows come from what clients ask and upstreams answer, so others decide how many there are. Rows are
chosen by a connection that reads, page by page, and deleted by the one that writes, which looks
again: they may be needed meanwhile.
"""

import sqlite3
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import structlog

from proxy.core.errors import StorageError
from proxy.core.names import Digest, Tag, Target
from proxy.index import values
from proxy.index.database import Database
from proxy.index.facts import Facts
from proxy.index.name_rows import forget_tag
from proxy.index.values import packed

AGES: Final = (30 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, -1.0)
"""Seconds without a confirmation, after which a row is forgotten when the file is too large. The
last takes rows of this moment too: a hostile registry may confirm thousands a second."""

LOW_MARK: Final = 0.9
"""Share of the limit that is left when rows had to be forgotten."""

PAGE: Final = 1000

_IS_UNKNOWN: Final = """NOT EXISTS (SELECT 1 FROM blob WHERE digest = {0})
  AND NOT EXISTS (SELECT 1 FROM child WHERE digest = {0})"""

Connection = sqlite3.Connection
log = structlog.get_logger(__name__)


class Link(NamedTuple):
    """A row about what a repository holds."""

    target: Target
    digest: Digest
    number: int


class NamedTag(NamedTuple):
    """A tag in a repository."""

    target: Target
    tag: Tag
    number: int


def old_links(db: Connection, after: Link | None, before: float) -> list[Link]:
    """Return a page of links to content that is neither held nor listed."""
    rows = db.execute(
        f"""SELECT r.upstream, r.name, l.digest, l.repo
        FROM link l CROSS JOIN repo r ON r.id = l.repo
        WHERE (l.digest, l.repo) > (?, ?) AND l.linked_at < ? AND {_IS_UNKNOWN.format("l.digest")}
        ORDER BY l.digest, l.repo LIMIT ?""",
        (
            b"" if after is None else packed(after.digest),
            after.number if after else 0,
            before,
            PAGE,
        ),
    )
    return [Link(values.target(*row[:2]), values.digest(row[2]), row[3]) for row in rows]


def delete_links(db: Connection, links: Sequence[Link]) -> int:
    """Delete the links that are still old; return how many."""
    query = (
        f"DELETE FROM link WHERE digest = ? AND repo = ? AND {_IS_UNKNOWN.format('link.digest')}"
    )
    return db.executemany(query, ((packed(one.digest), one.number) for one in links)).rowcount


def old_tags(
    db: Connection, after: NamedTag | None, before: float, needs_all: int
) -> list[NamedTag]:
    """Return a page of tags that were not seen since ``before``.

    Those that point to something held or listed are left out, unless ``needs_all``.
    """
    rows = db.execute(
        f"""SELECT r.upstream, r.name, s.tag, s.repo
        FROM sighting s CROSS JOIN repo r ON r.id = s.repo WHERE (s.repo, s.tag) > (?, ?)
        GROUP BY s.repo, s.tag HAVING max(s.last_seen) < ? AND (? OR NOT EXISTS (SELECT 1 FROM tag t
        WHERE t.repo = s.repo AND t.name = s.tag AND NOT ({_IS_UNKNOWN.format("t.digest")})))
        ORDER BY s.repo, s.tag LIMIT ?""",
        (after.number if after else 0, after.tag if after else "", before, needs_all, PAGE),
    )
    return [NamedTag(values.target(*row[:2]), values.tag(row[2]), row[3]) for row in rows]


def delete_tags(db: Connection, tags: Sequence[NamedTag], before: float) -> int:
    """Delete the tags that have not been seen since ``before``; return how many."""
    deleted = 0
    for target, tag, number in tags:
        query = "SELECT max(last_seen) FROM sighting WHERE repo = ? AND tag = ?"
        (seen,) = db.execute(query, (number, tag)).fetchone()
        if seen is not None and seen < before:
            forget_tag(db, target, tag)
            deleted += 1
    return deleted


def age_of_some(db: Connection) -> float | None:
    """Return a time before which some tags were seen last, the oldest of all; None for no tags."""
    query = """SELECT max(seen) FROM (SELECT max(last_seen) AS seen FROM sighting
        GROUP BY repo, tag ORDER BY seen LIMIT ?)"""
    (seen,) = db.execute(query, (2 * PAGE,)).fetchone()
    return None if seen is None else values.seconds(seen) + 1e-3


def delete_rest(db: Connection) -> int:
    """Delete referrers of content that is neither held nor listed, and unused repositories."""
    query = f"DELETE FROM referrer WHERE {_IS_UNKNOWN.format('referrer.subject')}"
    deleted = db.execute(query).rowcount
    db.execute(
        """DELETE FROM repo WHERE id NOT IN (SELECT repo FROM tag UNION SELECT repo FROM sighting
        UNION SELECT repo FROM link UNION SELECT repo FROM referrer)"""
    )
    return deleted


class Pruner:
    """Forgets rows. ``max_bytes`` bounds the file; ``file_bytes`` is its size as of lately."""

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
        """Forget rows about content that is neither held nor listed; return how many.

        Only those that were confirmed before ``before``, Unix seconds. Raises ``StorageError``.
        """
        pruned = 0
        async for links in self._facts.pages(old_links, before):
            keys = [key for one in links for key in (("link", *one[:2]), ("holders", one.digest))]
            pruned += await self._delete(keys, delete_links, links)
        pruned += await self._forget_tags(before, needs_all=0)
        return pruned + await self._delete([], delete_rest)

    async def keep_small(self, now: float) -> bool:
        """Forget the oldest rows if the file is too large; return True if it was.

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
        """Forget rows of content that is not here, the oldest first; then tags of what is here."""
        pruned = 0
        for age in AGES:
            if await self._is_small():
                return pruned
            pruned += await self.prune(now - age)
        while not await self._is_small():
            before = await self._facts.page(age_of_some)
            forgotten = await self._forget_tags(before, needs_all=1) if before is not None else 0
            if not forgotten:
                break
            pruned += forgotten
        return pruned

    async def _forget_tags(self, before: float, needs_all: int) -> int:
        forgotten = 0
        async for tags in self._facts.pages(old_tags, before, needs_all):
            keys: list[Hashable] = []
            for target, tag, _ in tags:
                keys += ("tag", target, tag), ("tags", target), ("history", target, tag)
            forgotten += await self._delete(keys, delete_tags, tags, before)
        return forgotten

    async def _delete(
        self, keys: Sequence[Hashable], work: Callable[..., int], *args: object
    ) -> int:
        deleted: list[int] = []
        await self._facts.write({}, keys, work, *args, then=deleted.append)
        return sum(deleted)

    async def _is_small(self) -> bool:
        await self._facts.threads.run(self._database.shrink)
        await self.measure()
        return self.file_bytes <= self._max_bytes * LOW_MARK
