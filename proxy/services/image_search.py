"""Searches and sorts the tagged images, in a snapshot in memory.

Reading all tags of a large cache takes seconds, so a snapshot is reused for ``PAUSE_FACTOR``
times as long as it took to make. For a small cache the snapshot is always current.
"""

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import Final, Generic, NamedTuple, TypeVar

from proxy.content.content import Content
from proxy.core.names import Digest, Tag, Target
from proxy.runtime.executors import Pool, in_thread

PAUSE_FACTOR: Final = 20.0
"""Lifetime of a snapshot, as a multiple of the time it took to make."""

IDLE_SECONDS: Final = 300.0
"""An unused snapshot is dropped after this time."""

_BATCH: Final = 500

Value = TypeVar("Value")


class Sort(StrEnum):
    """The sort order of images: names ascending, everything else descending."""

    NAME = "name"
    USED = "used"
    BYTES = "bytes"
    PULLS = "pulls"


class Entry(NamedTuple):
    """A tag, its digest, and the times of the last use and check (Unix seconds)."""

    target: Target
    tag: Tag
    digest: Digest
    used_at: float | None
    checked_at: float

    @property
    def name(self) -> str:
        """The image's name, as in a pin."""
        return f"{self.target}:{self.tag}"


Position = tuple[float, str]
"""Where a page ended: the value that it is sorted by, negative, and the name."""


class Page(NamedTuple):
    """A page of entries, and where the next one begins; None after the last one."""

    entries: list[Entry]
    following: Position | None


class ImageSearch:
    """Searches the images. ``pulls`` returns how often an image was pulled."""

    def __init__(self, content: Content, pulls: Callable[[str], int]) -> None:
        self._content = content
        self._pulls = pulls
        self._entries = _Snapshot(self._read)
        self._weights = _Snapshot(self._weigh)

    async def page(self, text: str, sort: Sort, limit: int, after: Position | None = None) -> Page:
        """Return the next images whose names contain a text. Raises ``StorageError``."""
        entries = await self._entries.current()
        weights = await self._weights.current() if sort is Sort.BYTES else {}
        value = {
            Sort.NAME: lambda _: 0.0,
            Sort.USED: lambda entry: -(entry.used_at or 0.0),
            Sort.BYTES: lambda entry: -float(weights.get(entry.digest, 0)),
            Sort.PULLS: lambda entry: -float(self._pulls(entry.name)),
        }[sort]
        choose = partial(_chosen, entries, text.lower(), value, limit, after)
        found = await in_thread(choose, Pool.COMPUTE)
        more = len(found) > limit
        return Page([entry for _, entry in found[:limit]], found[limit - 1][0] if more else None)

    async def _read(self) -> list[Entry]:
        return [
            Entry(
                one.target,
                one.tag,
                one.digest,
                None if one.held is None else one.held.used_at,
                one.record.checked_at,
            )
            async for batch in self._content.tags.all()
            for one in batch
        ]

    async def _weigh(self) -> dict[Digest, int]:
        digests = iter({entry.digest for entry in await self._entries.current()})
        weights: dict[Digest, int] = {}
        while batch := list(islice(digests, _BATCH)):
            held = await self._content.graph.weights(batch)
            weights |= {digest: weight.held_bytes for digest, weight in held.items()}
        return weights


def _chosen(
    entries: list[Entry],
    text: str,
    value: Callable[[Entry], float],
    limit: int,
    after: Position | None,
) -> list[tuple[Position, Entry]]:
    """Return the next entries, one more than ``limit`` if there are more."""
    placed = (
        ((value(entry), name), entry) for entry in entries if text in (name := entry.name).lower()
    )
    return heapq.nsmallest(limit + 1, (one for one in placed if after is None or one[0] > after))


class _Snapshot(Generic[Value]):
    """A value that is computed on demand, and reused for a limited time."""

    def __init__(self, make: Callable[[], Awaitable[Value]]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._value: Value | None = None
        self._until = 0.0
        self._dropping: asyncio.TimerHandle | None = None

    async def current(self) -> Value:
        """Return the value. Raises what making it raises."""
        async with self._making:
            value = self._value
            if value is None or time.monotonic() >= self._until:
                began = time.monotonic()
                value = self._value = await self._make()
                self._until = (now := time.monotonic()) + PAUSE_FACTOR * (now - began)
                if now - began < 0.05:  # cheap enough to make each time
                    self._until = 0.0
        if self._dropping is not None:
            self._dropping.cancel()
        self._dropping = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._drop)
        return value

    def _drop(self) -> None:
        self._value = None
