"""The tags that upstream listed last, by repository, kept for when it fails.

A list may take many pages, and clients read them one at a time: ``with_page`` puts them together.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from proxy.core.errors import TagInvalid
from proxy.core.names import Tag, Target, parse_tag
from proxy.core.records import Clock, ListedPage, TagList
from proxy.index.expiring import ExpiringRows, Key

MAX_LIST_BYTES: Final = 1024 * 1024
"""Size limit of one list as JSON; tags beyond it are left out, and the list is incomplete."""

MAX_NAMES: Final = 100_000
"""Names read of one page. Sorting the millions that a hostile registry may send takes too long."""

EXPIRE_SECONDS: Final = 30 * 86400.0
_QUOTES: Final = 4
"""Bytes that JSON adds to a tag: two quotes, a comma, a space."""


class Kept(NamedTuple):
    """A list, and how far a client has read it page by page.

    ``walked`` holds the tags of the pages since the first one, ``further`` is the query of the next
    page. Both are empty if no client is in the middle of a list.
    """

    tags: TagList
    walked: list[str]
    further: dict[str, str]


Change = Callable[[Kept | None], Kept | None]
"""Returns the new list, or None to keep the old one."""


class TagLists:
    """The last known tag list of each repository."""

    def __init__(self, rows: ExpiringRows, clock: Clock) -> None:
        self._rows = rows
        self._clock = clock

    async def get(self, target: Target) -> TagList | None:
        """Return the tags that upstream listed last; None if none are kept."""
        kept = await self._rows.get(_key(target), _parse)
        return None if kept is None else kept.tags

    async def add(self, target: Target, page: ListedPage) -> None:
        """Keep one page from upstream."""
        now = self._clock()
        await self._update(target, lambda kept: with_page(kept, page, now))

    async def remove(self, target: Target, tag: Tag) -> None:
        """Remove a tag that upstream no longer has."""
        await self._update(target, lambda kept: without(kept, tag))

    async def forget(self, target: Target) -> None:
        """Forget the list of a repository that upstream no longer has."""
        await self._rows.delete(_key(target))

    async def forget_all(self, target: Target) -> None:
        """Forget all that expires about a dropped repository: lists of referrers too."""
        await self._rows.forget(target)

    async def _update(self, target: Target, change: Change) -> None:
        def changed(kept: Kept | None) -> object:
            new = change(kept)
            if new is None:
                return None
            tags = new.tags
            return [tags.seen_at, tags.is_complete, list(tags.tags), new.walked, new.further]

        await self._rows.update(_key(target), _parse, changed, ttl=EXPIRE_SECONDS, target=target)


def with_page(kept: Kept | None, page: ListedPage, now: float) -> Kept:
    """Return a list with one more page; ``now`` in Unix seconds.

    There are three cases. A page with the whole list replaces it. A page that begins a walk or
    continues it extends ``walked``; the last page of the walk replaces the list. Every other page
    only adds tags. So tags deleted upstream stay until a list has been read to its end.
    """
    fresh, is_cut = _tags(page.tags)
    if page.is_whole:
        return Kept(_bounded(fresh, now, is_complete=not is_cut), [], {})
    before = kept or Kept(TagList((), is_complete=False, seen_at=now), [], {})
    position = _position(page.query)
    walked: list[str] | None = None
    if not position:
        walked = fresh
    elif position == before.further:
        walked = [*before.walked, *fresh]
    further = _position(page.further)
    if walked is not None and position and not further and not is_cut:
        return Kept(_bounded(walked, now, is_complete=True), [], {})
    tags = _bounded([*before.tags.tags, *fresh], now, is_complete=before.tags.is_complete)
    if walked is None:
        return Kept(tags, before.walked, before.further)
    if is_cut or sum(len(tag) + _QUOTES for tag in walked) > MAX_LIST_BYTES:
        return Kept(tags, [], {})
    return Kept(tags, walked if further else [], further)


def without(kept: Kept | None, tag: Tag) -> Kept | None:
    """Return a list without a tag; None if it does not hold that tag."""
    if kept is None or (tag not in kept.tags.tags and tag not in kept.walked):
        return None
    tags = tuple(other for other in kept.tags.tags if other != tag)
    walked = [other for other in kept.walked if other != tag]
    return Kept(TagList(tags, kept.tags.is_complete, kept.tags.seen_at), walked, kept.further)


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
    kept: list[str] = []
    room = MAX_LIST_BYTES
    for tag in sorted(set(tags)):
        room -= len(tag) + _QUOTES
        if room < 0:
            return TagList(tuple(kept), is_complete=False, seen_at=now)
        kept.append(tag)
    return TagList(tuple(kept), is_complete, now)


def _key(target: Target) -> Key:
    return ("tags", *target)


def _parse(row: Any) -> Kept:
    """Return a kept list. Raises ``TypeError`` or ``ValueError`` for a row that is none."""
    seen_at, is_complete, tags, walked, further = row
    if not (isinstance(tags, list) and isinstance(walked, list) and isinstance(further, dict)):
        raise TypeError("no list of tags")
    if not all(isinstance(tag, str) for tag in (*tags, *walked)):
        raise TypeError("no tag")
    return Kept(TagList(tuple(tags), bool(is_complete), float(seen_at)), walked, further)
