"""The tag lists that upstream gave last, kept for the time when it fails.

They may be lost: no pull depends on them. So they have a file and a thread of their own, and bounds
in bytes, number and age; the lists that were seen longest ago go first.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from proxy.core.errors import TagInvalid
from proxy.core.names import Repo, Tag, Target, parse_tag
from proxy.core.records import Clock, ListedPage, TagList
from proxy.index.table import UNREADABLE, Table
from proxy.index.worker import Worker

MAX_LIST_BYTES: Final = 1024 * 1024
"""Of one list as JSON; what does not fit is left out, and the list is incomplete."""

MAX_NAMES: Final = 100_000
"""Of one page. A hostile registry may send millions, and sorting them would hold up all else."""

MAX_BYTES: Final = 16 * 1024 * 1024
MAX_LISTS: Final = 5000
EXPIRE_SECONDS: Final = 30 * 86400.0
_QUOTES: Final = 4
"""Bytes that JSON adds to a tag: two quotes, a comma, a space."""


class _Row(NamedTuple):
    """``walked``: the tags of a list that a client reads page by page; ``further``: its next page.

    A walk that reaches the end replaces the list. ``further`` is empty while nobody walks.
    """

    kept: TagList
    walked: list[str]
    further: dict[str, str]


class TagLists:
    """An async context manager over one table."""

    def __init__(self, directory: Path, *, clock: Clock, on_trouble: Callable[[], None]) -> None:
        self._directory = directory
        self._clock = clock
        self._worker = Worker(on_trouble)
        self._table: Table | None = None
        self._sizes: dict[Target, tuple[float, int]] | None = None
        """When each list was seen last, and its bytes; None while the table cannot be read."""

    async def __aenter__(self) -> Self:
        """Open the table and see how large its lists are; if it fails, no list is kept."""
        self._table = await self._worker.survive(lambda: Table(self._directory), None)
        if self._table is not None:
            await self._worker.survive(self._read_sizes, None)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the table."""
        if (table := self._table) is not None:
            await self._worker.survive(table.close, None)
        self._worker.close()

    async def get(self, target: Target) -> TagList | None:
        """Return the tags that upstream listed last; None when none are kept, or for too long."""
        row = await self._worker.survive(lambda: self._row(target), None)
        return None if row is None else row.kept

    async def add(self, target: Target, page: ListedPage) -> None:
        """Keep one page that upstream gave."""
        await self._worker.survive(lambda: self._add(target, page), None)

    async def forget(self, target: Target) -> None:
        """Forget a list: upstream no longer has the repository."""
        await self._worker.survive(lambda: self._drop([target]), None)

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        """Take one tag out of a list: upstream no longer has it."""
        if self._sizes is None or target in self._sizes:
            await self._worker.survive(lambda: self._forget_tag(target, tag), None)

    def _row(self, target: Target) -> _Row | None:
        if self._table is None:
            return None
        try:
            row = _parse(self._table.get(list(target)))
        except UNREADABLE:
            return None
        return None if row.kept.seen_at + EXPIRE_SECONDS < self._clock() else row

    def _add(self, target: Target, page: ListedPage) -> None:
        self._write(target, with_page(self._row(target), page, self._clock()))

    def _forget_tag(self, target: Target, tag: Tag) -> None:
        row = self._row(target)
        if row is None or (tag not in row.kept.tags and tag not in row.walked):
            return
        tags = tuple(other for other in row.kept.tags if other != tag)
        kept = TagList(tags, row.kept.is_complete, row.kept.seen_at)
        self._write(
            target, _Row(kept, [other for other in row.walked if other != tag], row.further)
        )

    def _write(self, target: Target, row: _Row) -> None:
        if self._table is None:
            return
        value = [row.kept.seen_at, row.kept.is_complete, list(row.kept.tags), *row[1:]]
        sizes = self._known_sizes()
        sizes.pop(target, None)
        sizes[target] = row.kept.seen_at, len(json.dumps(value))
        self._table.set([(list(target), value)])
        self._shrink(sizes)

    def _shrink(self, sizes: dict[Target, tuple[float, int]]) -> None:
        """Drop lists until all bounds hold: the expired ones, then those seen longest ago."""
        expired = self._clock() - EXPIRE_SECONDS
        total = sum(size for _, size in sizes.values())
        dropped: list[Target] = []
        for target, (seen_at, size) in sorted(sizes.items(), key=lambda item: item[1]):
            kept = len(sizes) - len(dropped)
            if seen_at >= expired and total <= MAX_BYTES and kept <= MAX_LISTS:
                break
            dropped.append(target)
            total -= size
        if dropped:
            self._drop(dropped)

    def _drop(self, targets: list[Target]) -> None:
        if self._table is None:
            return
        sizes = self._known_sizes()
        self._table.delete([list(target) for target in targets])
        for target in targets:
            sizes.pop(target, None)

    def _read_sizes(self) -> None:
        self._known_sizes()

    def _known_sizes(self) -> dict[Target, tuple[float, int]]:
        if self._sizes is None:
            sizes: dict[Target, tuple[float, int]] = {}
            assert self._table is not None
            for batch in self._table.batches(_sized):
                sizes |= dict(batch)
            self._sizes = sizes
        return self._sizes


def with_page(row: _Row | None, page: ListedPage, now: float) -> _Row:
    """Return a row with one more page.

    There are three cases. A page that is the whole list replaces the row. A page that continues a
    walk, or begins one, extends it; at its end the walk replaces the list. Every other page only
    adds tags. Until a list has been read to its end, tags that upstream has dropped stay in it.
    """
    fresh, is_cut = _tags(page.tags)
    if page.is_whole:
        return _Row(_bounded(fresh, now, is_complete=not is_cut), [], {})
    before = row or _Row(TagList((), is_complete=False, seen_at=now), [], {})
    position = _position(page.query)
    walked: list[str] | None = None
    if not position:
        walked = fresh
    elif position == before.further:
        walked = [*before.walked, *fresh]
    further = _position(page.further)
    if walked is not None and position and not further and not is_cut:
        return _Row(_bounded(walked, now, is_complete=True), [], {})
    kept = _bounded([*before.kept.tags, *fresh], now, is_complete=before.kept.is_complete)
    if walked is None:
        return _Row(kept, before.walked, before.further)
    if is_cut or sum(map(len, walked)) > MAX_LIST_BYTES:
        return _Row(kept, [], {})
    return _Row(kept, walked if further else [], further)


def _position(query: dict[str, str]) -> dict[str, str]:
    """Return where a page begins, without how long it is."""
    return {name: query[name] for name in ("last", "next_page") if name in query}


def _tags(names: Sequence[str]) -> tuple[list[str], bool]:
    """Return the names that are legal tags, and whether there are more than are looked at."""
    tags: list[str] = []
    for name in names[:MAX_NAMES]:
        with suppress(TagInvalid):
            tags.append(parse_tag(name))
    return tags, len(names) > MAX_NAMES


def _bounded(tags: Iterable[str], now: float, *, is_complete: bool) -> TagList:
    """Return a list in order, cut where it becomes too large."""
    kept: list[str] = []
    room = MAX_LIST_BYTES
    for tag in sorted(set(tags)):
        room -= len(tag) + _QUOTES
        if room < 0:
            return TagList(tuple(kept), is_complete=False, seen_at=now)
        kept.append(tag)
    return TagList(tuple(kept), is_complete, now)


def _parse(value: Any) -> _Row:
    """Return a row. Raises one of ``UNREADABLE`` for what is none."""
    seen_at, is_complete, tags, walked, further = value
    if not (isinstance(tags, list) and isinstance(walked, list) and isinstance(further, dict)):
        raise TypeError("no list of tags")
    return _Row(TagList(tuple(map(str, tags)), bool(is_complete), float(seen_at)), walked, further)


def _sized(key: Any, value: Any) -> tuple[Target, tuple[float, int]]:
    upstream, repo = key
    return Target(upstream, Repo(repo)), (_parse(value).kept.seen_at, len(json.dumps(value)))
