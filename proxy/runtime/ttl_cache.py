"""Values in memory that expire, such as tokens: bounded, and lost at a restart.

The only module that imports aiocache. Its memory cache has no bound, so the keys are counted here;
and any timeout but 0 costs a timer in each call.
"""

from typing import Final, Generic, TypeVar

from aiocache import SimpleMemoryCache
from aiocache.serializers import NullSerializer
from cachetools import LRUCache

MAX_VALUES: Final = 50_000

Value = TypeVar("Value")


class TTLCache(Generic[Value]):
    """Values by key, each with a time to live; at the limit the least recently used one goes."""

    def __init__(self, limit: int = MAX_VALUES) -> None:
        self._values = SimpleMemoryCache(serializer=NullSerializer(), timeout=0)
        self._keys: LRUCache[str, None] = LRUCache(limit)

    async def get(self, key: str) -> Value | None:
        """Return the value, or None if there is none or it has expired."""
        value: Value | None = await self._values.get(key)
        if value is None:
            self._keys.pop(key, None)
        else:
            self._keys.get(key)
        return value

    async def values(self) -> list[Value]:
        """Return all values that have not expired."""
        found: list[Value | None] = await self._values.multi_get(list(self._keys))
        return [value for value in found if value is not None]

    async def set(self, key: str, value: Value, ttl: float) -> None:
        """Keep ``value`` for ``ttl`` seconds; not at all for 0 seconds."""
        if not ttl > 0:
            await self.delete(key)
            return
        if key not in self._keys and self._keys.currsize >= self._keys.maxsize:
            oldest, _ = self._keys.popitem()
            await self._values.delete(oldest)
        self._keys[key] = None
        await self._values.set(key, value, ttl=ttl)

    async def delete(self, key: str) -> None:
        """Delete the value, if there is one."""
        self._keys.pop(key, None)
        await self._values.delete(key)
