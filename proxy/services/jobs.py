"""Background jobs that an operator starts: with progress, and cancellable."""

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import structlog

from proxy.core.errors import NameUnknown, Overloaded, RegistryError, StorageError

MAX_RUNNING: Final = 16
MAX_ENDED: Final = 100
"""Number of ended jobs that are listed."""

MAX_NOTES: Final = 100
"""Entries of ``events`` in a result."""

Result = dict[str, Any]
Event = dict[str, Any]
log = structlog.get_logger(__name__)


class State(StrEnum):
    """The state of a job."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobFailedError(Exception):
    """The work has failed; the message says why."""


@dataclass(slots=True, eq=False)
class Job:
    """One job. ``done`` and ``total`` are bytes or pieces, by its kind; times are Unix."""

    id: str
    kind: str
    what: str
    started: float
    state: State = State.RUNNING
    ended: float | None = None
    done: int = 0
    total: int | None = None
    result: Result = field(default_factory=dict)
    error: str | None = None

    def add(self, entry: object) -> None:
        """Add an entry to ``events`` in the result, which keeps the first ones."""
        entries: list[object] = self.result.setdefault("events", [])
        if len(entries) < MAX_NOTES:
            entries.append(entry)


Work = Callable[[Job], Awaitable[None]]
"""Does the work and reports to the job. Raises ``RegistryError``, ``JobFailedError``."""


class Jobs:
    """The jobs of this process, from their start until they are forgotten."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._run = secrets.token_hex(3)
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._ended: deque[Job] = deque(maxlen=MAX_ENDED)
        self._is_closed = False

    def start(self, kind: str, what: str, work: Work) -> Job:
        """Start a job. Raises ``Overloaded`` if too many run."""
        if self._is_closed or len(self._running) >= MAX_RUNNING:
            problem = "stopping" if self._is_closed else f"{MAX_RUNNING} jobs are running"
            raise Overloaded(f"{problem}; retry", retry_after=10)
        job = Job(f"{self._run}-{next(self._numbers)}", kind, what, time.time())
        task = asyncio.create_task(self._do(job, work), name=f"job {job.id}: {kind}")
        self._running[job] = task
        task.add_done_callback(lambda task: self._end(job, task))
        return job

    def all(self) -> list[Job]:
        """Return all jobs, the latest first."""
        return [*reversed(self._running), *reversed(self._ended)]

    def get(self, name: str) -> Job:
        """Return the job with this id. Raises ``NameUnknown``."""
        for job in self.all():
            if job.id == name:
                return job
        raise NameUnknown(f"{name[:40]!r}: there is no such job; the last {MAX_ENDED} are kept")

    async def cancel(self, job: Job) -> None:
        """Cancel a job, and return when it has ended. One that has ended stays as it is."""
        if (task := self._running.get(job)) is not None:
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """Cancel all jobs and wait until they have ended; no others can be started."""
        self._is_closed = True
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _do(self, job: Job, work: Work) -> None:
        try:
            await work(job)
            job.state = State.DONE
        except RegistryError as error:
            job.state, job.error = State.FAILED, error.message
        except (JobFailedError, StorageError) as error:
            job.state, job.error = State.FAILED, str(error)
        except Exception:
            log.exception("a job failed unexpectedly", job=job.id, kind=job.kind)
            job.state, job.error = State.FAILED, "internal error"

    def _end(self, job: Job, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            job.state = State.CANCELLED
        job.ended = time.time()
        del self._running[job]
        self._ended.append(job)
        log.info("job ended", job=job.id, kind=job.kind, what=job.what, state=job.state.value)


async def follow(job: Job, events: AsyncGenerator[Event], *, unit: str = "bytes") -> None:
    """Apply the events of a service to a job: its progress, and in the result all others.

    ``unit`` is what progress counts. Raises ``JobFailedError`` for events that end without
    ``done``.
    """
    async with aclosing(events):
        async for event in events:
            match event:
                case {"event": "start", **facts}:
                    job.total = facts.get(unit)
                case {"event": "progress", **facts}:
                    job.done, job.total = facts[unit], facts.get("total", job.total)
                case {"event": "done", **facts}:
                    job.result |= facts
                    job.done, job.total = facts.get(unit, job.done), facts.get("total", job.total)
                    return
                case _:
                    job.add(event)
    raise JobFailedError("the work ended early")
