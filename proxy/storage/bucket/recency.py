"""The last uses of objects in the bucket, for eviction."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final, Protocol

from cachetools import LRUCache

from proxy.core.errors import DigestInvalid
from proxy.core.names import Digest, parse_digest
from proxy.core.records import Clock
from proxy.core.tolerant_json import as_list

MAX_USES: Final = 20_000
"""Maximum number of recorded uses. An object without one counts as used at its upload."""


class Recency(Protocol):
    """The last uses of objects, by all machines that share the bucket. Any of them may be lost."""

    def touch(self, digest: Digest) -> None:
        """Count a use. Returns at once; it may become known to others some seconds later."""

    async def last_used(self, digests: Sequence[Digest]) -> dict[Digest, float]:
        """Return the known last uses of objects, Unix seconds."""

    def lease(self) -> AbstractAsyncContextManager[bool]:
        """Acquire the exclusive right to evict; the value is True if that succeeds."""


class LocalRecency:
    """The last uses by this machine only, for a bucket without Redis."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._uses: LRUCache[Digest, float] = LRUCache(MAX_USES)

    def touch(self, digest: Digest) -> None:
        """Count a use."""
        self._uses[digest] = self._clock()

    async def last_used(self, digests: Sequence[Digest]) -> dict[Digest, float]:
        """Return the known last uses of objects."""
        return {digest: self._uses[digest] for digest in digests if digest in self._uses}

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[bool]:
        """Acquire the right to evict: there is no other machine."""
        yield True

    def saved(self) -> list[tuple[str, float]]:
        """Return all uses as JSON values."""
        return list(self._uses.items())

    def load(self, saved: Any) -> None:
        """Load saved uses; malformed ones are ignored."""
        for row in as_list(saved):
            match row:
                case [str(digest), int() | float() as used]:
                    with suppress(DigestInvalid):
                        self._uses[parse_digest(digest)] = float(used)
