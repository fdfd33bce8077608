"""Records deliveries, so that replays are ignored."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from proxy.core.records import Clock

MAX_IDS: Final = 10_000
"""Ids of one sender; above that the oldest are forgotten. A repetition costs a few HEADs at most,
because ``TagQueue`` checks a tag once in a few seconds."""

REMEMBERED_SECONDS: Final = 86400.0


class Replays:
    """The ids that one sender has used in the last day."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def has(self, number: str) -> bool:
        """Return True if an id was used; "" never was."""
        at = self._seen.get(_key(number))
        return at is not None and self._clock() - at < REMEMBERED_SECONDS

    def add(self, numbers: Iterable[str]) -> None:
        """Record ids."""
        for number in filter(None, numbers):
            key = _key(number)
            self._seen.pop(key, None)
            self._seen[key] = self._clock()
            if len(self._seen) > MAX_IDS:
                self._seen.popitem(last=False)


def _key(number: str) -> bytes:
    """Return a key of bounded length: senders choose their ids."""
    return hashlib.sha256(number.encode("utf-8", "surrogatepass")).digest()
