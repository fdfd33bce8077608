"""Last uses: a buffer in front of the rows, and the order in which content is evicted.

Uses are written in one transaction every few seconds. ``use_rows`` says which times are written at
once, and which when they are needed.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Final

from proxy.core.errors import StorageError
from proxy.core.names import Digest
from proxy.core.records import BlobRecord, Clock
from proxy.index import Position, use_rows
from proxy.index.facts import Facts
from proxy.index.use_rows import Times

_STEP: Final = 1e-5
"""Seconds added between two uses at the same time, so that they have an order."""

_SLICE: Final = 500
"""Uses of one write: others wait while it runs."""

_FRONT: Final = 500
_ROUNDS: Final = 20
"""Every few seconds, the times of so many of the coldest blobs are written, this many times over:
the first eviction after a long time then finds few that it has to write."""


class Uses:
    """The uses of held content. ``pending`` are those that are not written yet."""

    def __init__(self, facts: Facts, clock: Clock) -> None:
        self._facts = facts
        self._clock = clock
        self._last = 0.0
        self._is_settled = False
        self.pending: Final[dict[Digest, float]] = {}
        self.on_used: Callable[[Iterable[Digest]], None] | None = None
        """Called with content that was used, and what is held below it, after that is written."""

    def touch(self, digest: Digest) -> None:
        """Count a use."""
        self._last = max(self._clock(), self._last + _STEP)
        self.pending.pop(digest, None)
        self.pending[digest] = self._last

    def stored(self, record: BlobRecord) -> None:
        """Forget a use of content that is stored anew with a time of last use."""
        self._last = max(self._last, min(record.used_at, self._clock()))
        self.pending.pop(record.digest, None)

    async def flush(self) -> None:
        """Write the uses until now."""
        for _ in range(0, len(self.pending), _SLICE):
            self._is_settled = False
            uses = [(one, self.pending.pop(one)) for one in [*islice(self.pending, _SLICE)]]
            await self._facts.write({}, (), use_rows.use, uses, then=self.written)
            await self._report([digest for digest, _ in uses])

    def written(self, times: Times) -> None:
        """Correct the times of last use in RAM."""

        def later(record: BlobRecord | None, used_at: float) -> BlobRecord | None:
            is_later = record is not None and record.used_at < used_at
            return replace(record, used_at=used_at) if record and is_later else record

        self._facts.correct({("blob", one): used_at for one, used_at in times.items()}, later)

    async def coldest(
        self, after: Position | None, limit: int
    ) -> list[tuple[Position, BlobRecord]]:
        """Return a page of the coldest content; see ``Index``.

        There are three kinds of rows in a page of the file:

        - Those with the right time, which are returned.
        - Blobs of manifests that were used later. They get their time, which moves them, and the
          page is read again. If the disk fails they are left out: they are warmer than they seem.
        - Those of dropped content, whose rows could not be deleted yet. They are left out.
        """
        await self.flush()
        while page := await self._facts.page(use_rows.coldest, after, limit):
            late = use_rows.late(page)
            if late and await self._lifted(late):
                continue
            left_out = dict(late)
            held = [
                one
                for one in page
                if one[1].digest not in left_out
                and self._facts.peek(("blob", one[1].digest)) is not None
            ]
            if held:
                return held
            after = page[-1][0]
        return []

    async def settle(self) -> None:
        """Write times of the coldest blobs, unless they are written since the last use."""
        with suppress(StorageError):
            for _ in range(0 if self._is_settled else _ROUNDS):
                late = use_rows.late(await self._facts.page(use_rows.coldest, None, _FRONT))
                self._is_settled = not late
                if not late or not await self._lifted(late):
                    break

    async def _lifted(self, late: Sequence[tuple[Digest, float]]) -> bool:
        """Write later times; return True if they are written."""
        done: list[Times] = []
        await self._facts.write({}, (), use_rows.lift, late, then=done.append)
        for times in done:
            self.written(times)
        return bool(done)

    async def _report(self, used: list[Digest]) -> None:
        if self.on_used is not None:
            with suppress(StorageError):
                self.on_used(await self._facts.page(use_rows.held_trees, used))
