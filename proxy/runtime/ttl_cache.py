"""Values in memory that expire, such as tokens: bounded, and lost at a restart.

The only module that imports aiocache. Its memory cache has no bound, so the keys are counted here;
and any timeout but 0 costs a timer in each call.
"""

import sys
from typing import Final, Generic, TypeVar

from cachetools import LRUCache

# aiocache imports the libraries of all its backends that are installed: redis takes 0.1 s of a
# start, and nothing here uses it through aiocache.
_HIDDEN = [name for name in ("redis", "aiomcache") if name not in sys.modules]
for _name in _HIDDEN:
    sys.modules[_name] = None  # type: ignore[assignment]  # its import fails

from aiocache import SimpleMemoryCache  # noqa: E402
from aiocache.serializers import NullSerializer  # noqa: E402

for _name in _HIDDEN:
    del sys.modules[_name]

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
