"""Who holds what: the repositories of each digest, the recent ones in RAM."""

from collections.abc import Callable, Iterable
from typing import Final

from cachetools import LRUCache

from proxy.index.tables import Tables
from proxy.index.worker import Worker
from proxy.names import Digest, Target

_IN_RAM: Final = 100_000

Holders = dict[Target, None]
"""A set that keeps its order: the newest holder last."""


class Links:
    """Mirrors the table of links."""

    def __init__(self, tables: Tables, worker: Worker) -> None:
        self._tables = tables
        self._worker = worker
        self._ram: LRUCache[Digest, Holders] = LRUCache(_IN_RAM)

    async def add(self, target: Target, digests: Iterable[Digest]) -> None:
        """Remember that a repository holds these."""
        holders = await self._load(digests)
        new = {digest: known for digest, known in holders.items() if target not in known}
        for known in new.values():
            known[target] = None
        if new:
            rows = {digest: list(known) for digest, known in new.items()}
            await self._worker.survive(lambda: self._tables.set_holders(rows), None)

    def known(self, digest: Digest) -> Holders | None:
        """Return the holders if RAM has them."""
        return self._ram.get(digest)

    async def of(self, digest: Digest) -> Holders:
        """Return the repositories that are known to hold this."""
        return (await self._load([digest]))[digest]

    async def prune(self, is_known: Callable[[Digest], bool]) -> int:
        """Forget who holds what is not known any more, nor in RAM; return how many rows went."""
        pruned = 0
        async for digests in self._worker.batches(self._tables.linked):
            gone = [d for d in digests if d not in self._ram and not is_known(d)]
            await self._worker.survive(lambda gone=gone: self._tables.forget_holders(gone), None)  # type: ignore[misc]
            pruned += len(gone)
        return pruned

    async def _load(self, digests: Iterable[Digest]) -> dict[Digest, Holders]:
        """Return the holders of each digest as the very sets that RAM keeps."""
        found = {digest: self._ram.get(digest) for digest in digests}
        missing = [digest for digest, known in found.items() if known is None]
        if missing:
            nothing: dict[Digest, list[Target]] = {}
            rows = await self._worker.survive(lambda: self._tables.holders(missing), nothing)
            for digest in missing:
                loaded = dict.fromkeys(rows.get(digest, ()))
                found[digest] = self._ram.setdefault(digest, loaded)
        return {digest: known for digest, known in found.items() if known is not None}
