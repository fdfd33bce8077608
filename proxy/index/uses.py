"""Last uses of content: noted at once, put into the order of the ledger later, in slices."""

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Final, TypeVar

from proxy.core.names import Digest
from proxy.core.records import Clock
from proxy.index.ledger import Ledger

_SLICE: Final = 250  # rows that the loop works on before it turns: a few milliseconds

Item = TypeVar("Item")


class Uses:
    """Uses that the ledger, or the table behind it, does not know yet."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._noted: dict[Digest, float] = {}
        self._unwritten: dict[Digest, None] = {}

    def note(self, digest: Digest, used_at: float | None = None) -> None:
        """Note a use at ``used_at``, Unix seconds; None is now."""
        self._noted.pop(digest, None)
        self._noted[digest] = self._clock() if used_at is None else used_at

    def forget(self, digest: Digest) -> None:
        """Forget the use of content that is no longer held."""
        self._noted.pop(digest, None)

    async def settle(self) -> None:
        """Return once every use until now is in the order of the ledger."""
        while self._noted:
            for digest in list(islice(self._noted, _SLICE)):
                if self._ledger.use(digest, self._noted.pop(digest)):
                    self._unwritten[digest] = None
            if self._noted:
                await asyncio.sleep(0)

    def unwritten(self) -> list[Digest]:
        """Return what was used since the last time."""
        used, self._unwritten = self._unwritten, {}
        return list(used)


def sliced(items: list[Item]) -> Iterator[list[Item]]:
    """Yield a list in parts that do not hold up the loop."""
    for start in range(0, len(items), _SLICE):
        yield items[start : start + _SLICE]
