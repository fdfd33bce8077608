"""One running task per key, shared by all concurrent callers that work for the same client.

With ``credentials: caller`` work is not shared between clients: one client would get an answer for
another one.

No caller owns the task: any of them may be cancelled, including the first. A failure reaches every
caller; the next call starts a new task.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import structlog

from proxy.runtime.client_key import CLIENT_KEY

Value = TypeVar("Value")
log = structlog.get_logger(__name__)


class SingleFlight(Generic[Value]):
    """Owns its tasks from ``do`` until they end or ``close`` cancels them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: dict[object, asyncio.Task[Value]] = {}

    async def do(self, key: object, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Join or start ``work`` for ``key``; return its result, or raise its exception."""
        return await asyncio.shield(self._task(key, work))

    def start(self, key: object, work: Callable[[], Coroutine[Any, Any, Value]]) -> None:
        """Start ``work`` in the background unless it runs for ``key``; a failure is logged."""
        self._task(key, work).add_done_callback(self._log_failure)

    def _task(
        self, key: object, work: Callable[[], Coroutine[Any, Any, Value]]
    ) -> "asyncio.Task[Value]":
        shared = CLIENT_KEY.get(), key
        task = self._running.get(shared)
        if task is None:
            task = asyncio.create_task(work(), name=f"{self._name} {key}")
            self._running[shared] = task
            task.add_done_callback(lambda done: self._ended(shared, done))
        return task

    def __len__(self) -> int:
        return len(self._running)

    def is_running(self, key: object) -> bool:
        """Return True if work for ``key`` is in progress."""
        return (CLIENT_KEY.get(), key) in self._running

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
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
            task.exception()  # retrieved here, as every caller may have been cancelled
