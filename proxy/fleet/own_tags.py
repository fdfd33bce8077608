"""Reads and writes the records of this replica as facts about tags, by the clock of Redis."""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from cachetools import LRUCache

from proxy.core.names import Tag, Target
from proxy.core.records import Clock, TagHistoryEntry, TagRecord
from proxy.fleet.store import Store
from proxy.fleet.tag_facts import DROPPED, Fact, Key

MAX_TAKEN: Final = 10_000
MAX_STEP: Final = 1.0
"""A record that is newer than now by so many seconds was made while the clock was wrong."""


class Image(Protocol):
    """A tag and its record in this replica's index."""

    @property
    def target(self) -> Target:
        """The repository."""

    @property
    def tag(self) -> Tag:
        """The tag."""

    @property
    def record(self) -> TagRecord:
        """Where it points."""


class LocalTags(Protocol):
    """The records of this replica."""

    @property
    def on_dropped(self) -> list[Callable[[Target, Tag], None]]:
        """Called with each tag that is dropped here."""

    async def get(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return where a tag points."""

    async def set(self, target: Target, tag: Tag, record: TagRecord | None) -> None:
        """Record where a tag points; None: nowhere, its history stays."""

    async def forget(self, target: Target, tag: Tag) -> None:
        """Forget a tag and its history."""

    async def add_history(
        self, target: Target, tag: Tag, entries: Iterable[TagHistoryEntry]
    ) -> None:
        """Merge what others saw into the history of a tag."""

    def all(self) -> AsyncIterator[Sequence[Image]]:
        """Yield all tags in batches."""


Stays = Callable[[Fact, TagRecord], bool]
"""Returns True if a tag stays here although the fact says that it is gone."""


class _Taken(NamedTuple):
    """A fact of which a record was made; ``at`` is this machine's monotonic time of the check.

    ``gaps`` counts those before it.
    """

    fact: Fact
    at: float
    gaps: int


class OwnRecords:
    """The records of this replica as facts."""

    def __init__(self, store: Store, local: LocalTags, clock: Clock, stays: Stays) -> None:
        self._store = store
        self._local = local
        self._clock = clock
        self._stays = stays
        self._taken: LRUCache[Key, _Taken] = LRUCache(MAX_TAKEN)
        """Facts of which the records here were made: a record has another clock, which jumps."""
        self._gaps = 0

    def on_gap(self) -> None:
        """Trust no time of Redis from before: it may run on another machine now."""
        self._gaps += 1

    def fact(self, key: Key, record: TagRecord | None) -> Fact | None:
        """Return what this replica's record says, by the clock of Redis.

        There are three cases. A record of this process has a fact, whose age is known even if this
        machine's clock was set. After a gap Redis may run on another machine, with another clock.
        A record of an earlier process has this machine's time; one from the future says nothing.
        """
        if record is None:
            return None
        taken: _Taken | None = self._taken.get(key)
        if taken is not None and taken.fact.descriptor == record.descriptor:
            if taken.gaps == self._gaps:
                return taken.fact
            age = time.monotonic() - taken.at
        else:
            age = self._clock() - record.checked_at
            if age < -MAX_STEP:
                return Fact(*key, record.descriptor, 0.0)
        return Fact(*key, record.descriptor, self._store.now() - max(0.0, age))

    def record(self, fact: Fact) -> TagRecord:
        """Return a fact by this machine's clock."""
        age = max(0.0, self._store.now() - fact.at)
        return TagRecord(fact.descriptor, self._clock() - age)

    async def write(self, fact: Fact) -> TagRecord | None:
        """Record a fact and return the record; None for a tag that is gone."""
        if fact.is_gone:
            await self._remove(fact)
            return None
        age = self._store.now() - fact.at
        self._taken[fact.key] = _Taken(fact, time.monotonic() - age, self._gaps)
        record = self.record(fact)
        await self._local.set(*fact.key, record)
        return record

    async def _remove(self, fact: Fact) -> None:
        record = await self._local.get(*fact.key)
        if record is None or self._stays(fact, record):
            return
        if fact.descriptor == DROPPED:
            await self._local.forget(*fact.key)
        else:
            await self._local.set(*fact.key, None)
