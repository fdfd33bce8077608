"""Owns background tasks: restarts those that fail, and reports them.

A failed task starts again after a pause that doubles with each failure in a row. Metrics count the
failures; an essential task that keeps failing makes the proxy unready. ``running_beside`` owns a
task that lasts only as long as a piece of other work.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import structlog

from proxy.runtime.metrics import TaskCounters
from proxy.runtime.readiness import Readiness

FIRST_PAUSE: Final = 0.5
"""Seconds until the first restart."""

LONGEST_PAUSE: Final = 30.0

WELL_SECONDS: Final = 60.0
"""A task that runs this long without a failure counts as recovered."""

UNREADY_SECONDS: Final = 30.0
"""An essential task that has failed repeatedly for this long makes the proxy unready."""

Work = Callable[[], Coroutine[Any, Any, None]]
"""Starts one run of a task; called again for each restart."""

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


@asynccontextmanager
async def running_beside(
    work: Coroutine[Any, Any, Result], name: str
) -> AsyncIterator[asyncio.Task[Result]]:
    """Run ``work`` as a task; leaving the context cancels it and waits until it has ended."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


class Supervisor:
    """Owns tasks from ``start`` until they end or ``close`` cancels them.

    ``counters`` gets an entry for each task; supervisors may share ``counters`` and ``readiness``.
    """

    def __init__(
        self,
        counters: dict[str, TaskCounters] | None = None,
        readiness: Readiness | None = None,
    ) -> None:
        self._counters = {} if counters is None else counters
        self._readiness = Readiness() if readiness is None else readiness
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Work) -> None:
        """Run ``work`` until it returns. The proxy stays ready while it fails."""
        self._start(_Supervised(name, work, self._counters, None))

    def start_essential(self, name: str, work: Work) -> None:
        """Run ``work`` until it returns. The proxy is not ready while it keeps failing."""
        self._start(_Supervised(name, work, self._counters, self._readiness))

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, supervised: "_Supervised") -> None:
        self._tasks.append(asyncio.create_task(supervised.run(), name=supervised.name))


class _Supervised:
    """One task: its restarts, counters and readiness."""

    def __init__(
        self,
        name: str,
        work: Work,
        counters: dict[str, TaskCounters],
        readiness: Readiness | None,
    ) -> None:
        self.name = name
        self._work = work
        self._readiness = readiness
        self._counters = counters.setdefault(name, TaskCounters())
        self._pause = FIRST_PAUSE
        self._failing_since: float | None = None

    async def run(self) -> None:
        """Return when the work has returned; start it again whenever it raises."""
        while True:
            self._counters.is_running = True
            recovery = asyncio.get_running_loop().call_later(WELL_SECONDS, self._recovered)
            try:
                failure = await self._failure()
            finally:
                recovery.cancel()
            if failure is None:
                self._recovered()
                return
            await self._wait_after(failure)

    async def _failure(self) -> BaseException | None:
        """Do the work once; return the exception that it raised, None if it ended normally.

        There are two cases of ``CancelledError``: this task is cancelled, which ends it, or
        something that it awaited was cancelled, which is a failure like any other.
        """
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._work()
        except asyncio.CancelledError as error:
            if task.cancelling():
                raise
            return error
        except Exception as error:
            return error
        return None

    async def _wait_after(self, error: BaseException) -> None:
        """Report a failure, and wait until the task may start again."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        self._counters.failures += 1
        self._counters.is_running = False
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        log.error("background task failed", task=self.name, restart_in=pause, exc_info=error)
        if self._readiness is not None and now - self._failing_since >= UNREADY_SECONDS:
            self._readiness.report(self.name, f"fails repeatedly: {type(error).__name__}")
        await asyncio.sleep(pause)

    def _recovered(self) -> None:
        self._pause, self._failing_since = FIRST_PAUSE, None
        if self._readiness is not None:
            self._readiness.clear(self.name)
