"""A bounded cache in RAM that keeps recently used entries.

Two generations instead of a linked list: an entry that is used moves to the young generation; when
that is full it becomes the old one, and the previous old one is dropped. So a hit costs one or two
dictionary lookups, and entries in constant use are never dropped.
"""

from collections.abc import Hashable, Iterable
from typing import Any, Final

MISSING: Final = object()
"""Returned for a key that is not in the cache; None is a value."""


class RamCache:
    """``limit`` bounds the weight of one generation. An entry weighs 1, and 1 for each element."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._weight = 0
        self._young: dict[Hashable, Any] = {}
        self._old: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: Hashable, default: Any = MISSING) -> Any:
        """Return the value of a key, or ``default``."""
        value = self._young.get(key, MISSING)
        if value is MISSING:
            value = self._old.pop(key, MISSING)
            if value is MISSING:
                return default
            self.put(key, value)
        return value

    def put(self, key: Hashable, value: Any) -> None:
        """Set the value of a key. May drop other entries."""
        self._old.pop(key, None)
        self._young[key] = value
        self._weight += 1 + (len(value) if type(value) is tuple else 0)
        if self._weight > self._limit:
            self._old, self._young, self._weight = self._young, {}, 0

    def pop(self, key: Hashable) -> None:
        """Drop a key, if it is there."""
        self._young.pop(key, None)
        self._old.pop(key, None)

    def retain(self, keys: Iterable[Hashable]) -> None:
        """Drop all but some keys."""
        kept = [(key, self.get(key)) for key in keys]
        self._young, self._old, self._weight = {}, {}, 0
        for key, value in kept:
            if value is not MISSING:
                self.put(key, value)
