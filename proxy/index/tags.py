"""Where tags point: all of it in RAM once the table has been read, with the table behind it.

While the table is being read, what is learnt or dropped meanwhile is newer than any row.
"""

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from proxy.core.names import Tag, Target
from proxy.core.records import TagHistoryEntry, TagRecord
from proxy.index.tables import Tables
from proxy.index.worker import Worker

_MANY: Final = 1000
"""Tags that are worth a look at what the garbage collector does with them."""


class Tags:
    """Mirrors the table of tags. ``changed`` is called when a tag points elsewhere than before."""

    def __init__(self, tables: Tables, worker: Worker, changed: Callable[[], None]) -> None:
        self._tables = tables
        self._worker = worker
        self._changed = changed
        self._known: dict[Target, dict[Tag, TagRecord]] = {}
        self._dropped: set[tuple[Target, Tag]] = set()
        self._is_loaded = False

    async def load(self) -> None:
        """Mirror the table. Raises ``StorageError``; may then be called again."""
        async for rows in self._worker.batches(self._tables.all_tags):
            for row in rows:
                if row.record is not None and (row.target, row.tag) not in self._dropped:
                    self._known.setdefault(row.target, {}).setdefault(row.tag, row.record)
            await asyncio.sleep(0)
            if len(rows) >= _MANY:
                gc.freeze()  # or the collector looks through all of it, many times: long pauses
        self._is_loaded = True
        self._dropped.clear()

    async def get(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return what the tag pointed to when upstream was last asked."""
        record = self.pointed(target, tag)
        if record is not None or self._is_loaded or (target, tag) in self._dropped:
            return record
        record = await self._worker.survive(lambda: self._tables.tag(target, tag), None)
        if (target, tag) in self._dropped:  # while the row was being read
            return None
        return self.pointed(target, tag) or record

    def pointed(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return where a tag points as far as it is known by now."""
        return self._known.get(target, {}).get(tag)

    async def set(self, target: Target, tag: Tag, record: TagRecord) -> None:
        """Remember the tag, and the sighting in its history."""
        known = self._known.setdefault(target, {})
        before = known.get(tag)
        known[tag] = record
        self._dropped.discard((target, tag))
        if before is None or before.descriptor != record.descriptor:
            self._changed()
        await self._worker.survive(lambda: self._tables.set_tag(target, tag, record), None)

    async def drop(self, target: Target, tag: Tag) -> None:
        """Forget where the tag points; its history stays."""
        if not self._is_loaded:
            self._dropped.add((target, tag))
        elif self.pointed(target, tag) is None:
            return
        self._forget(target, tag)
        await self._worker.survive(lambda: self._tables.drop_tag(target, tag), None)

    async def forget(self, tags: Iterable[tuple[Target, Tag]]) -> None:
        """Forget tags and their history."""
        forgotten = list(tags)
        for target, tag in forgotten:
            self._forget(target, tag)
        await self._worker.survive(lambda: self._tables.forget_tags(forgotten), None)

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        """Return the digests the tag has pointed to, latest last; at most 50."""
        empty: tuple[TagHistoryEntry, ...] = ()
        return await self._worker.survive(lambda: self._tables.history(target, tag), empty)

    def of(self, target: Target) -> list[Tag]:
        """Return the tags of a repository that are known by now, sorted."""
        return sorted(self._known.get(target, {}))

    def repositories(self) -> list[Target]:
        """Return the repositories with tags that are known by now."""
        return list(self._known)

    def all(self) -> Iterator[tuple[Target, Tag, TagRecord]]:
        """Iterate over all tags that are known by now, sorted; may change meanwhile."""
        for target in sorted(self._known):
            for tag, record in sorted(self._known.get(target, {}).items()):
                yield target, tag, record

    def _forget(self, target: Target, tag: Tag) -> None:
        known = self._known.get(target, {})
        if known.pop(tag, None) is not None:
            self._changed()
        if not known:
            self._known.pop(target, None)
