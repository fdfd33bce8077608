"""What expires by itself: tokens, absences. Bounded, in memory, lost at a restart.

The one room that knows aiocache, which has no bound of its own, and sets a timer on every call
unless its timeout is 0.
"""

from typing import Final, Generic, TypeVar

from aiocache import SimpleMemoryCache
from aiocache.serializers import NullSerializer
from cachetools import FIFOCache

MAX_FACTS: Final = 50_000

Value = TypeVar("Value")


class TTLCache(Generic[Value]):
    """One kind of fact by key, each with a time to live of its own."""

    def __init__(self, limit: int = MAX_FACTS) -> None:
        self._cache = SimpleMemoryCache(serializer=NullSerializer(), timeout=0)
        self._order: FIFOCache[str, None] = FIFOCache(limit)

    async def get(self, key: str) -> Value | None:
        """Return the fact, or None when it is unknown or has expired."""
        value: Value | None = await self._cache.get(key)
        return value

    async def learn(self, key: str, value: Value, ttl: float) -> None:
        """Remember ``value`` for ``ttl`` seconds; the oldest fact makes room at the limit."""
        if ttl <= 0:
            return
        if key not in self._order and self._order.currsize >= self._order.maxsize:
            oldest, _ = self._order.popitem()
            await self._cache.delete(oldest)
        self._order[key] = None
        await self._cache.set(key, value, ttl=ttl)

    async def forget(self, key: str) -> None:
        """Drop the fact, if it is known."""
        self._order.pop(key, None)
        await self._cache.delete(key)
