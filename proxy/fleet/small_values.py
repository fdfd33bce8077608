"""Small values in Redis, by repository and digest, which replicas send in the background.

A key contains the repository: whoever finds it there knows that the repository holds the content.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from proxy.core.errors import FleetUnavailable
from proxy.core.names import Digest, Target
from proxy.fleet.store import Store

LIFE_SECONDS: Final = 3600
MAX_WAITING: Final = 200
"""Maximum number of values that wait to be sent; others are not sent."""

Make = Callable[[], Awaitable[bytes | None]]
"""Returns a value when it is its turn, None if there is none any more."""


class SmallValues:
    """Values of one ``kind``. Run ``run`` as a task."""

    def __init__(self, store: Store, kind: str) -> None:
        self._store = store
        self._kind = kind
        self._waiting: asyncio.Queue[tuple[str, Make]] = asyncio.Queue(MAX_WAITING)

    def add(self, target: Target, digest: Digest, make: Make) -> None:
        """Send a value later."""
        if not self._waiting.full():
            self._waiting.put_nowait((self._key(target, digest), make))

    async def run(self) -> None:
        """Send values, until cancelled. Those that Redis does not take are dropped."""
        while True:
            key, make = await self._waiting.get()
            value = await make()
            if value is None:
                continue
            try:
                await self._store.run("SET", key, value, "EX", LIFE_SECONDS)
            except FleetUnavailable:
                continue

    async def get(self, target: Target, digest: Digest) -> Any:
        """Return what Redis has, None for nothing. Raises ``FleetUnavailable``."""
        return await self._store.run("GET", self._key(target, digest))

    def _key(self, target: Target, digest: Digest) -> str:
        return self._store.key(self._kind, target.upstream, target.repo, digest)
