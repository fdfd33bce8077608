"""Forgets rows: those about content that is no longer here, and the oldest when there are too many.

Rows come from what clients ask and upstreams say, so others decide how many there are.
"""

import heapq
from functools import partial
from typing import Final, NamedTuple

import structlog

from proxy.core.errors import StorageError
from proxy.core.names import Tag, Target
from proxy.index.ledger import Ledger
from proxy.index.links import Links
from proxy.index.tables import Tables
from proxy.index.tags import Tags
from proxy.index.worker import Worker

_AGES: Final = (30 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, 0.0)
"""Seconds without a confirmation, after which a row goes when the index is too large."""

_LOW_MARK: Final = 0.9
"""Share of the limit that is left when rows had to go."""

_OLDEST: Final = 2000
"""Tags of held content that go at once when nothing else is left to forget."""

log = structlog.get_logger(__name__)


class Known(NamedTuple):
    """What is known of content, in RAM: what is held, who holds it, and which tags name it."""

    ledger: Ledger
    links: Links
    tags: Tags


class Pruner:
    """Deletes rows of all tables but those of held content.

    ``max_bytes`` is how large the files may be; ``file_bytes`` is how large they were of late.
    """

    def __init__(self, tables: Tables, worker: Worker, known: Known, *, max_bytes: float) -> None:
        self._tables = tables
        self._worker = worker
        self._ledger, self._links, self._tags = known
        self._max_bytes = max_bytes
        self.file_bytes = 0

    async def measure(self) -> None:
        """Look how large the files are."""
        self.file_bytes = await self._worker.survive(self._tables.file_bytes, self.file_bytes)

    async def prune(self, before: float) -> int:
        """Forget rows about content that is neither held nor listed by what is held.

        Tags and referrers only when they were last confirmed before ``before``, Unix seconds.
        Returns how many rows went. Raises ``StorageError``.
        """
        pruned = await self._links.prune(self._ledger.is_known)
        async for subjects in self._worker.batches(self._tables.subjects):
            unknown = [
                row
                for row in subjects
                if row.checked_at < before and not self._ledger.is_known(row.subject)
            ]
            await self._worker.survive(partial(self._tables.forget_subjects, unknown), None)
            pruned += len(unknown)
        async for tagged in self._worker.batches(self._tables.all_tags):
            old = [
                (row.target, row.tag)
                for row in tagged
                if row.seen_at < before
                and not (row.record and self._ledger.is_known(row.record.descriptor.digest))
            ]
            await self._tags.forget(old)
            pruned += len(old)
        return pruned

    async def keep_small(self, now: float) -> None:
        """Forget the oldest rows when the files are too large. ``now`` is in Unix seconds."""
        await self.measure()
        if self.file_bytes <= self._max_bytes:
            return
        try:
            rows = await self._shrink(now)
        except StorageError as error:
            log.warning("the index cannot be made smaller", error=str(error))
        else:
            log.warning("the index was too large", rows_forgotten=rows, bytes=self.file_bytes)

    async def _shrink(self, now: float) -> int:
        """Forget the oldest rows until the files are small, or none is left.

        First those about content that is not here, the oldest first; then tags of what is here.
        Returns how many rows went.
        """
        pruned = 0
        for age in _AGES:
            if await self._is_small():
                return pruned
            if not age:  # whoever asks for made-up digests makes all their rows recent ones
                await self._links.let_go(self._ledger.is_known)
            pruned += await self.prune(now - age)
        while not await self._is_small() and (oldest := await self._oldest_tags()):
            await self._tags.forget(oldest)
            pruned += len(oldest)
        return pruned

    async def _is_small(self) -> bool:
        await self._worker.survive(self._tables.shrink, None)
        await self.measure()
        return self.file_bytes <= self._max_bytes * _LOW_MARK

    async def _oldest_tags(self) -> list[tuple[Target, Tag]]:
        found: list[tuple[float, Target, Tag]] = []
        async for rows in self._worker.batches(self._tables.all_tags):
            found += [(row.seen_at, row.target, row.tag) for row in rows]
            found = heapq.nsmallest(_OLDEST, found)
        return [(target, tag) for _, target, tag in found]
