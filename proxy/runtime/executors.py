"""Blocking work in threads, which a cancellation never interrupts.

A cancelled task does not stop its thread. If the task closed a file in the meantime, the next file
could get the same descriptor, and the thread would write into the wrong one. So a cancellation is
raised only after the thread has ended.

Each kind of work has its own threads, so that slow work of one kind does not delay another: a
manifest is read while a slow disk syncs blobs. ``index`` has separate threads for SQLite.
"""

import asyncio
import contextlib
import contextvars
import os
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from functools import partial
from threading import Thread
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

LARGE: Final = 64 * 1024
"""Bytes. Hashing or parsing less takes the loop less time than switching threads."""


class Pool(Enum):
    """A kind of work."""

    READ = "read"
    """Reading small content that a request waits for."""
    STREAM = "stream"
    """Reading blobs ahead of ``sendfile``."""
    WRITE = "write"
    """Creating and writing spool files, removing files."""
    SYNC = "sync"
    """fsync and rename. These threads only wait for the disk, so there are many."""
    COMPUTE = "compute"
    """Hashing and parsing that a request waits for."""
    PASSWORD = "password"  # noqa: S105 - the name of its threads
    """Hashing passwords, which is slow by intent: at most half of the cores do it."""
    PROGRAM = "program"
    """Programs that print credentials. A slow one delays only other ones."""
    UPKEEP = "upkeep"
    """Listing, verifying and repairing the store: no request waits for it."""
    EXPIRING = "expiring"
    """The file of ``index.expiring``: one thread, so one step after the other."""


_CORES: Final = os.cpu_count() or 1
THREADS: Final[Mapping[Pool, int]] = {
    Pool.READ: 8,
    Pool.STREAM: 8,
    Pool.WRITE: 8,
    Pool.SYNC: 32,
    Pool.COMPUTE: _CORES + 2,
    Pool.PASSWORD: max(1, _CORES // 2),
    Pool.PROGRAM: 4,
    Pool.UPKEEP: 4,
    Pool.EXPIRING: 1,
}
_EXECUTORS: Final = {
    pool: ThreadPoolExecutor(threads, thread_name_prefix=pool.value)
    for pool, threads in THREADS.items()
}


async def in_thread(work: Callable[[], Result], pool: Pool = Pool.READ) -> Result:
    """Return the result of blocking ``work``; a cancellation is raised once the thread ended."""
    return await run_to_completion(_run(work, pool))


async def in_thread_if_large(size: int, work: Callable[[], Result]) -> Result:
    """Return the result of ``work``, which computes from ``size`` bytes: large ones in a thread."""
    return work() if size <= LARGE else await in_thread(work, Pool.COMPUTE)


async def run_to_completion(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of ``work``; a cancellation is raised once it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():  # also if this task is cancelled several times
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


def start_in_thread(work: Callable[[], Result], pool: Pool) -> asyncio.Future[Result]:
    """Start blocking ``work``; its owner waits for the future before it closes a file."""
    return asyncio.get_running_loop().run_in_executor(_EXECUTORS[pool], work)


def start_detached(work: Callable[[], Result], name: str) -> "Future[Result]":
    """Start ``work`` that may never return, in a thread that does not delay the process's exit.

    It must not use what its caller may close.
    """
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    Thread(target=run, name=name, daemon=True).start()
    return future


async def _run(work: Callable[[], Result], pool: Pool) -> Result:
    in_context = partial(contextvars.copy_context().run, work)
    return await asyncio.get_running_loop().run_in_executor(_EXECUTORS[pool], in_context)
