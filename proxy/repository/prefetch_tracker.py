"""Which blobs clients are expected to request, and whether they do. State only."""

import asyncio
from collections.abc import Iterable
from typing import Final

from cachetools import LRUCache

from proxy.core.names import Digest, Target
from proxy.runtime.metrics import CacheCounters

_UNUSED: Final = 100_000


class Expectation:
    """A client has a manifest and may request its blobs; ``signs`` are those that prove it."""

    def __init__(self, upstream: str, blobs: frozenset[Digest], signs: frozenset[Digest]) -> None:
        self.upstream = upstream
        self.blobs = blobs
        self.asked: set[Digest] = set()
        self.is_met = asyncio.Event()
        self._signs = signs

    def ask(self, digest: Digest) -> None:
        """Note that a client requests one of the blobs."""
        self.asked.add(digest)
        if digest in self._signs:
            self.is_met.set()


class PrefetchTracker:
    """All expectations by upstream and digest, and the blobs prefetched because of them."""

    def __init__(self, counters: CacheCounters) -> None:
        self._counters = counters
        self._awaited: dict[tuple[str, Digest], set[Expectation]] = {}
        self._unused: LRUCache[tuple[str, Digest], int] = LRUCache(_UNUSED)

    def begin(
        self, target: Target, blobs: Iterable[Digest], signs: Iterable[Digest]
    ) -> Expectation:
        """Expect clients to request these blobs; ``end`` must follow."""
        expectation = Expectation(target.upstream, frozenset(blobs), frozenset(signs))
        for digest in expectation.blobs:
            self._awaited.setdefault((target.upstream, digest), set()).add(expectation)
        return expectation

    def end(self, expectation: Expectation) -> None:
        """Stop expecting these requests."""
        for digest in expectation.blobs:
            waiting = self._awaited[expectation.upstream, digest]
            waiting.remove(expectation)
            if not waiting:
                del self._awaited[expectation.upstream, digest]

    def asked(self, target: Target, digest: Digest) -> None:
        """Note that a client requests a blob, expected or not."""
        key = target.upstream, digest
        for expectation in self._awaited.get(key, ()):
            expectation.ask(digest)
        if self._unused and (size := self._unused.pop(key, None)) is not None:
            self._used(size)

    def fetched(self, expectation: Expectation, digest: Digest, size: int) -> None:
        """Count a prefetched blob of ``size`` bytes."""
        self._counters.prefetched_blobs += 1
        self._counters.prefetched_bytes += size
        if digest in expectation.asked:
            self._used(size)
        else:
            self._unused[expectation.upstream, digest] = size

    def given_up(self, size: int) -> None:
        """Count the ``size`` bytes of an abandoned prefetch."""
        self._counters.prefetched_bytes += size

    def _used(self, size: int) -> None:
        self._counters.prefetched_used_blobs += 1
        self._counters.prefetched_used_bytes += size
