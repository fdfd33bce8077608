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

from proxy.runtime.part_counters import TaskCounters
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
        self._start(name, work, None)

    def start_essential(self, name: str, work: Work) -> None:
        """Run ``work`` until it returns. The proxy is not ready while it keeps failing."""
        self._start(name, work, self._readiness)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, name: str, work: Work, readiness: Readiness | None) -> None:
        counters = self._counters.setdefault(name, TaskCounters())
        streak = _Failures(name, readiness)
        self._tasks.append(asyncio.create_task(_supervise(work, counters, streak), name=name))


class _Failures:
    """The failures in a row of one task."""

    def __init__(self, task: str, readiness: Readiness | None) -> None:
        self._task = task
        self._readiness = readiness
        self.end()

    def end(self) -> None:
        """Reset the failures: the task works."""
        self._pause = FIRST_PAUSE
        self._since: float | None = None
        if self._readiness is not None:
            self._readiness.clear(self._task)

    def add(self, error: BaseException) -> float:
        """Report a failure; return the seconds until the restart."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        log.error("background task failed", task=self._task, restart_in=pause, exc_info=error)
        if self._readiness is not None and now - self._since >= UNREADY_SECONDS:
            self._readiness.report(self._task, f"fails repeatedly: {type(error).__name__}")
        return pause


async def _supervise(work: Work, counters: TaskCounters, failures: _Failures) -> None:
    """Return when the work has returned; start it again whenever it raises."""
    while True:
        counters.is_running = True
        recovery = asyncio.get_running_loop().call_later(WELL_SECONDS, failures.end)
        try:
            failure = await _failure(work)
        finally:
            recovery.cancel()
        if failure is None:
            failures.end()
            return
        counters.failures += 1
        counters.is_running = False
        await asyncio.sleep(failures.add(failure))


async def _failure(work: Work) -> BaseException | None:
    """Do the work once; return the exception that it raised, None if it ended normally.

    There are two cases of ``CancelledError``: this task is cancelled, which ends it, or something
    that it awaited was cancelled, which is a failure like any other. A failure while this task is
    cancelled ends it too: a task group whose children fail then raises their errors instead.
    """
    task = asyncio.current_task()
    assert task is not None
    try:
        await work()
    except asyncio.CancelledError as error:
        if task.cancelling():
            raise
        return error
    except Exception as error:
        if task.cancelling():
            raise asyncio.CancelledError from error
        return error
    return None
