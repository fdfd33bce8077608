"""Who holds what: the repositories of each digest.

All of it is in RAM for what is held and has few holders, as most has: a number in the ledger for
each set of holders. Of the rest the recent ones are.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Final

from cachetools import LRUCache

from proxy.core.names import Digest, Target
from proxy.index.ledger import Ledger
from proxy.index.tables import Tables
from proxy.index.worker import Worker

_IN_RAM: Final = 100_000
_FEW: Final = 4
_SETS: Final = 1 << 20
_UNKNOWN: Final = 0
_ELSEWHERE: Final = 1
_SLICE: Final = 250

Holders = dict[Target, None]
"""A set that keeps its order: the newest holder last."""


class Links:
    """Mirrors the table of links."""

    def __init__(self, tables: Tables, worker: Worker, ledger: Ledger) -> None:
        self._tables = tables
        self._worker = worker
        self._ledger = ledger
        self._ram: LRUCache[Digest, Holders] = LRUCache(_IN_RAM)
        self._sets: list[tuple[Target, ...]] = [(), ()]
        self._numbers: dict[tuple[Target, ...], int] = {}

    async def load(self) -> None:
        """Mirror what the table says of content that the ledger knows."""
        async for rows in self._worker.batches(self._tables.all_holders):
            for start in range(0, len(rows), _SLICE):
                for digest, targets in rows[start : start + _SLICE]:
                    if 0 < len(targets) <= _FEW and self.known(digest) is None:
                        self._number(digest, targets)
                await asyncio.sleep(0)

    async def add(self, target: Target, digests: Iterable[Digest]) -> list[Digest]:
        """Remember that a repository holds these; return those for which that is new."""
        holders = await self._load(digests)
        rows = {d: [*known, target] for d, known in holders.items() if target not in known}
        for digest, targets in rows.items():
            self._keep(digest, targets)
        if rows:
            await self._worker.survive(lambda: self._tables.set_holders(rows), None)
        return list(rows)

    async def remove(self, target: Target, digests: Iterable[Digest]) -> None:
        """Forget that a repository holds these."""
        holders = await self._load(digests)
        rows = {
            digest: [holder for holder in known if holder != target]
            for digest, known in holders.items()
            if target in known
        }
        for digest, targets in rows.items():
            self._keep(digest, targets)
        kept = {digest: targets for digest, targets in rows.items() if targets}
        gone = [digest for digest, targets in rows.items() if not targets]
        if kept:
            await self._worker.survive(lambda: self._tables.set_holders(kept), None)
        if gone:
            await self._worker.survive(lambda: self._tables.forget_holders(gone), None)

    def known(self, digest: Digest) -> Collection[Target] | None:
        """Return the holders if RAM has them."""
        number = self._ledger.label(digest)
        return self._sets[number] if number > _ELSEWHERE else self._ram.get(digest)

    async def of(self, digest: Digest) -> Collection[Target]:
        """Return the repositories that are known to hold this."""
        return (await self._load([digest]))[digest]

    async def let_go(self, is_known: Callable[[Digest], bool]) -> None:
        """Forget in RAM who holds what is not known, so that ``prune`` takes those rows too."""
        digests = list(self._ram)
        for start in range(0, len(digests), _SLICE):
            for digest in digests[start : start + _SLICE]:
                if not is_known(digest):
                    self._ram.pop(digest, None)
            await asyncio.sleep(0)

    async def prune(self, is_known: Callable[[Digest], bool]) -> int:
        """Forget who holds what is not known any more, nor in RAM; return how many rows went."""
        pruned = 0
        async for digests in self._worker.batches(self._tables.linked):
            gone = [d for d in digests if d not in self._ram and not is_known(d)]
            await self._worker.survive(lambda gone=gone: self._tables.forget_holders(gone), None)  # type: ignore[misc]
            pruned += len(gone)
        return pruned

    async def _load(self, digests: Iterable[Digest]) -> dict[Digest, Collection[Target]]:
        """Return the holders of each digest, as of now."""
        wanted = list(digests)
        missing = [digest for digest in wanted if self.known(digest) is None]
        if missing:
            nothing: dict[Digest, list[Target]] = {}
            rows = await self._worker.survive(lambda: self._tables.holders(missing), nothing)
            for digest in missing:
                if self.known(digest) is None:
                    self._keep(digest, rows.get(digest, []))
        return {digest: self.known(digest) or () for digest in wanted}

    def _keep(self, digest: Digest, targets: list[Target]) -> None:
        if 0 < len(targets) <= _FEW and self._number(digest, targets):
            self._ram.pop(digest, None)
        else:
            self._ledger.set_label(digest, _ELSEWHERE)
            self._ram[digest] = dict.fromkeys(targets)

    def _number(self, digest: Digest, targets: list[Target]) -> bool:
        """Keep holders as a number in the ledger; tell whether it knows the digest."""
        key = tuple(targets)
        number = self._numbers.get(key)
        if number is None:
            if len(self._sets) > _SETS:  # of many years; all of it is learnt anew
                self._ledger.forget_labels()
                self._numbers.clear()
                del self._sets[_ELSEWHERE + 1 :]
            number = self._numbers[key] = len(self._sets)
            self._sets.append(key)
        return self._ledger.set_label(digest, number)
