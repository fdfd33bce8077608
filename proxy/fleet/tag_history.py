"""Where tags have pointed, as all replicas saw it together.

A cool-down is decided by the history of a tag, so replicas that know different histories would
serve different digests. Redis has the history of the fleet. A replica compares it with its own when
it learns that a tag points elsewhere than it knew, and after a gap: it takes what it has not seen,
and adds what only it has seen.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from proxy.core.names import Tag, Target
from proxy.core.records import HISTORY_LIMIT, Clock, TagHistoryEntry, merged_history
from proxy.fleet.store import Store
from proxy.fleet.tag_facts import Key
from proxy.fleet.tag_store import StoredHistory, TagStore

_TOLERANCE: Final = 1.0
"""Seconds by which two machines see the same moment differently."""


class LocalHistory(Protocol):
    """The histories of this replica, by its own clock."""

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        """Return where a tag points and has pointed, the latest last."""

    async def add_history(
        self, target: Target, tag: Tag, entries: Iterable[TagHistoryEntry]
    ) -> None:
        """Merge what others saw into the history of a tag."""


class SharedHistory:
    """Verbs that ask Redis raise ``FleetUnavailable``."""

    def __init__(self, store: Store, facts: TagStore, local: LocalHistory, clock: Clock) -> None:
        self._store = store
        self._facts = facts
        self._local = local
        self._clock = clock

    async def own(self, key: Key) -> list[TagHistoryEntry]:
        """Return what this replica saw of a tag, by the clock of Redis.

        Sights at an unknown time (0) are left out.
        """
        known = [one for one in await self._local.history(*key) if one.first_seen > 0]
        return _moved(known, self._store.now() - self._clock())

    async def agree(self, *keys: Key) -> None:
        """Take what others saw of tags, and add what only this replica saw."""
        histories = await self._facts.histories(keys)
        for key, known in zip(keys, histories, strict=True):
            if known is not None:
                await self._agree(key, known)

    async def _agree(self, key: Key, known: StoredHistory) -> None:
        own = await self.own(key)
        together = merged_history([*known.entries, *own])[-HISTORY_LIMIT:]
        if not _is_same(together, own):
            theirs = _moved(known.entries, self._clock() - self._store.now())
            await self._local.add_history(*key, theirs)
        is_extended = not _is_same(together, known.entries)
        if is_extended and together[-1].digest == known.digest.decode(errors="replace"):
            await self._facts.extend(key, known, together)


def _moved(entries: Iterable[TagHistoryEntry], seconds: float) -> list[TagHistoryEntry]:
    return [
        TagHistoryEntry(one.digest, one.first_seen + seconds, one.last_seen + seconds)
        for one in entries
    ]


def _is_same(one: Sequence[TagHistoryEntry], other: Sequence[TagHistoryEntry]) -> bool:
    """Return True if two histories differ by no more than clocks and the last check do."""
    if [entry.digest for entry in one] != [entry.digest for entry in other]:
        return False
    firsts = zip(one, other, strict=True)
    lasts = zip(one[:-1], other[:-1], strict=True)
    return all(abs(a.first_seen - b.first_seen) <= _TOLERANCE for a, b in firsts) and all(
        abs(a.last_seen - b.last_seen) <= _TOLERANCE for a, b in lasts
    )
