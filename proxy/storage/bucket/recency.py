"""When objects of the bucket were last used: what eviction needs to know beyond the bucket."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final, Protocol

from cachetools import LRUCache

from proxy.core.errors import DigestInvalid
from proxy.core.names import Digest, parse_digest
from proxy.core.records import Clock
from proxy.core.tolerant_json import as_list

MAX_USES: Final = 20_000
"""Uses that one machine remembers. An object without one counts as used when it was written."""


class Recency(Protocol):
    """The last uses of objects, by all machines that share the bucket. May forget any of them."""

    def touch(self, digest: Digest) -> None:
        """Count a use. Returns at once; it may become known to others some seconds later."""

    async def last_used(self, digests: Sequence[Digest]) -> dict[Digest, float]:
        """Return when objects were last used, Unix seconds, as far as that is known."""

    def lease(self) -> AbstractAsyncContextManager[bool]:
        """Have the right to evict, if the value is True: no other machine has it meanwhile."""


class LocalRecency:
    """The last uses by this machine alone, which is all that is known without Redis."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._uses: LRUCache[Digest, float] = LRUCache(MAX_USES)

    def touch(self, digest: Digest) -> None:
        """Count a use."""
        self._uses[digest] = self._clock()

    async def last_used(self, digests: Sequence[Digest]) -> dict[Digest, float]:
        """Return when objects were last used, as far as that is known."""
        return {digest: self._uses[digest] for digest in digests if digest in self._uses}

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[bool]:
        """Have the right to evict: there is no other machine."""
        yield True

    def saved(self) -> list[tuple[str, float]]:
        """Return all uses as JSON values."""
        return list(self._uses.items())

    def load(self, saved: Any) -> None:
        """Take uses that were saved before; what cannot be read is left out."""
        for row in as_list(saved):
            match row:
                case [str(digest), int() | float() as used]:
                    with suppress(DigestInvalid):
                        self._uses[parse_digest(digest)] = float(used)
