"""Tags that wait for work: each once, a few at a time, and none twice within seconds."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from proxy.core.errors import Overloaded
from proxy.core.names import Tag, Target

MAX_WAITING: Final = 1000
RETRY_SECONDS: Final = 10.0
"""Retry delay for a sender that found the queue full."""

Key = tuple[Target, Tag]


class TagQueue:
    """A queue in front of ``work``. A tag that is added while it waits is one piece of work.

    A tag that is added while its work runs is worked on again, ``pause`` seconds after that ended.
    """

    def __init__(
        self, work: Callable[[Target, Tag], Awaitable[None]], *, concurrency: int, pause: float
    ) -> None:
        """``work`` must handle its own failures."""
        self._work = work
        self._concurrency = concurrency
        self._pause = pause
        self._waiting: dict[Key, None] = {}
        self._ready_at: dict[Key, float] = {}
        """When tags whose work has just ended may be worked on again, by the loop's clock."""
        self._running: set[Key] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, keys: Collection[Key]) -> None:
        """Queue tags: all, or none if not all fit. Raises ``Overloaded``."""
        added = [key for key in keys if key not in self._waiting]
        if len(self._waiting) + len(added) > MAX_WAITING:
            problem = f"{len(self._waiting)} tags wait to be checked; try again later"
            raise Overloaded(problem, retry_after=RETRY_SECONDS)
        self._waiting.update(dict.fromkeys(added))
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        self._running.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for key in self._next():
                    del self._waiting[key]
                    self._running.add(key)
                    group.create_task(self._one(key), name=f"queued {key[0]}:{key[1]}")
                await self._wait()

    def _next(self) -> list[Key]:
        """Return the tags whose work may start now."""
        now = asyncio.get_running_loop().time()
        self._ready_at = {key: at for key, at in self._ready_at.items() if at > now}
        ready = [key for key in self._waiting if key not in self._running | self._ready_at.keys()]
        return ready[: self._concurrency - len(self._running)]

    async def _one(self, key: Key) -> None:
        try:
            await self._work(*key)
        finally:
            self._running.discard(key)
            self._ready_at[key] = asyncio.get_running_loop().time() + self._pause
            self._changed.set()

    async def _wait(self) -> None:
        """Wait until a tag is added, work ends, or a pause does."""
        pauses = [self._ready_at[key] for key in self._waiting if key in self._ready_at]
        try:
            async with asyncio.timeout_at(min(pauses, default=None)):
                await self._changed.wait()
        except TimeoutError:
            return
