"""The last list of tags from upstream, by repository, for use when it fails.

A list may take many pages, and clients read them one at a time: ``with_page`` puts them together.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from proxy.core.errors import TagInvalid
from proxy.core.names import Tag, Target, parse_tag
from proxy.core.records import Clock, TagList
from proxy.index.expiring import ExpiringRows, Key
from proxy.upstream.registry import TagPage

MAX_LIST_BYTES: Final = 1024 * 1024
"""Size limit of one list as JSON; tags beyond it are left out, and the list is incomplete."""

MAX_NAMES: Final = 100_000
"""Maximum number of names read of one page. A hostile registry may send millions."""

EXPIRE_SECONDS: Final = 30 * 86400.0
_QUOTES: Final = 4
"""Bytes that JSON adds to a tag: two quotes, a comma, a space."""


class KnownList(NamedTuple):
    """A list, and the progress of a client that reads it page by page.

    ``read`` holds the tags of the pages since the first one, ``next_query`` is the query of the
    next page. Both are empty if no client is in the middle of a list.
    """

    tags: TagList
    read: list[str]
    next_query: dict[str, str]


Change = Callable[[KnownList | None], KnownList | None]
"""Returns the new list, or None to keep the old one."""


class TagLists:
    """The last known tag list of each repository."""

    def __init__(self, rows: ExpiringRows, clock: Clock) -> None:
        self._rows = rows
        self._clock = clock

    async def get(self, target: Target) -> TagList | None:
        """Return the tags that upstream listed last; None if none are known."""
        known = await self._rows.get(_key(target), _parse)
        return None if known is None else known.tags

    async def add(self, target: Target, page: TagPage, query: dict[str, str]) -> None:
        """Keep one page from upstream, which ``query`` requested."""
        now = self._clock()
        await self._update(target, lambda known: with_page(known, page, query, now))

    async def remove(self, target: Target, tag: Tag) -> None:
        """Remove a tag that upstream no longer has."""
        await self._update(target, lambda known: without(known, tag))

    async def forget(self, target: Target) -> None:
        """Forget the list of a repository that upstream no longer has."""
        await self._rows.delete(_key(target))

    async def forget_all(self, target: Target) -> None:
        """Forget all that expires about a dropped repository: lists of referrers too."""
        await self._rows.forget(target)

    async def _update(self, target: Target, change: Change) -> None:
        def changed(known: KnownList | None) -> object:
            new = change(known)
            if new is None:
                return None
            tags = new.tags
            return [tags.seen_at, tags.is_complete, list(tags.tags), new.read, new.next_query]

        await self._rows.update(_key(target), _parse, changed, ttl=EXPIRE_SECONDS, target=target)


def with_page(
    known: KnownList | None, page: TagPage, query: dict[str, str], now: float
) -> KnownList:
    """Return a list with one more page; ``now`` in Unix seconds.

    There are three cases. A page with the whole list replaces it. The first page and those that
    follow it in order extend ``read``; the last of them replaces the list. Every other page only
    adds tags. So tags deleted upstream stay until a list has been read to its end.
    """
    fresh, is_cut = _tags(page.tags)
    if _is_complete(page, query):
        return KnownList(_bounded(fresh, now, is_complete=not is_cut), [], {})
    before = known or KnownList(TagList((), is_complete=False, seen_at=now), [], {})
    position = _position(query)
    read: list[str] | None = None
    if not position:
        read = fresh
    elif position == before.next_query:
        read = [*before.read, *fresh]
    next_query = _position(page.next_query)
    if read is not None and position and not next_query and not is_cut:
        return KnownList(_bounded(read, now, is_complete=True), [], {})
    tags = _bounded([*before.tags.tags, *fresh], now, is_complete=before.tags.is_complete)
    if read is None:
        return KnownList(tags, before.read, before.next_query)
    if is_cut or sum(len(tag) + _QUOTES for tag in read) > MAX_LIST_BYTES:
        return KnownList(tags, [], {})
    return KnownList(tags, read if next_query else [], next_query)


def without(known: KnownList | None, tag: Tag) -> KnownList | None:
    """Return a list without a tag; None if it does not contain that tag."""
    if known is None or (tag not in known.tags.tags and tag not in known.read):
        return None
    tags = tuple(other for other in known.tags.tags if other != tag)
    read = [other for other in known.read if other != tag]
    return KnownList(
        TagList(tags, known.tags.is_complete, known.tags.seen_at), read, known.next_query
    )


def _is_complete(page: TagPage, query: dict[str, str]) -> bool:
    """Return True if a page holds all tags of its repository.

    A full page without ``Link`` may come from a registry that follows ``n`` but sends no links.
    """
    if page.next_query:
        return False
    if "last" in query and query["last"] in page.tags:
        return True  # the registry ignores ``last``
    is_first = "last" not in query and "next_page" not in query
    return is_first and ("n" not in query or len(page.tags) != int(query["n"]))


def _position(query: dict[str, str]) -> dict[str, str]:
    """Return where a page begins, without its length."""
    return {name: query[name] for name in ("last", "next_page") if name in query}


def _tags(names: Sequence[str]) -> tuple[list[str], bool]:
    """Return the valid tags among the first ``MAX_NAMES`` names, and True if there are more."""
    tags: list[str] = []
    for name in names[:MAX_NAMES]:
        with suppress(TagInvalid):
            tags.append(parse_tag(name))
    return tags, len(names) > MAX_NAMES


def _bounded(tags: Iterable[str], now: float, *, is_complete: bool) -> TagList:
    """Return a sorted list, cut at ``MAX_LIST_BYTES``."""
    bounded: list[str] = []
    room = MAX_LIST_BYTES
    for tag in sorted(set(tags)):
        room -= len(tag) + _QUOTES
        if room < 0:
            return TagList(tuple(bounded), is_complete=False, seen_at=now)
        bounded.append(tag)
    return TagList(tuple(bounded), is_complete, now)


def _key(target: Target) -> Key:
    return ("tags", *target)


def _parse(row: Any) -> KnownList:
    """Return a list. Raises ``TypeError`` or ``ValueError`` for a row that is none."""
    seen_at, is_complete, tags, read, next_query = row
    if not (isinstance(tags, list) and isinstance(read, list) and isinstance(next_query, dict)):
        raise TypeError("no list of tags")
    if not all(isinstance(tag, str) for tag in (*tags, *read)):
        raise TypeError("no tag")
    return KnownList(TagList(tuple(tags), bool(is_complete), float(seen_at)), read, next_query)
