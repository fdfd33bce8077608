"""One running coroutine per key, shared by everybody who asks for it meanwhile.

The work belongs to nobody's request: any caller may be cancelled, the first included. A failure
reaches every waiter; the next call starts anew.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import structlog

Value = TypeVar("Value")
log = structlog.get_logger(__name__)


class SingleFlight(Generic[Value]):
    """Owns its tasks from ``do`` until they end or ``close`` cancels them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: dict[object, asyncio.Task[Value]] = {}

    async def do(self, key: object, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Return what the one running ``work`` for ``key`` returns; raises what it raises."""
        return await asyncio.shield(self._task(key, work))

    def start(self, key: object, work: Callable[[], Coroutine[Any, Any, Value]]) -> None:
        """Begin ``work`` unless it runs for ``key``. What it raises is logged."""
        self._task(key, work).add_done_callback(self._log_failure)

    def _task(
        self, key: object, work: Callable[[], Coroutine[Any, Any, Value]]
    ) -> "asyncio.Task[Value]":
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(work(), name=f"{self._name} {key}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def __len__(self) -> int:
        return len(self._running)

    def is_running(self, key: object) -> bool:
        """Tell whether a caller would join instead of start."""
        return key in self._running

    async def close(self) -> None:
        """Cancel what still runs, and wait until it has ended."""
        tasks: list[Awaitable[Value]] = list(self._running.values())
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _log_failure(self, task: "asyncio.Task[Value]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", work=task.get_name(), exc_info=error)

    def _ended(self, key: object, task: "asyncio.Task[Value]") -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen here: a background caller may not be listening
