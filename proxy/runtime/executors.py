"""Work that is never left half done by a cancellation, in threads of several kinds.

A cancelled task does not stop its thread. Were a file closed meanwhile, the next one to be opened
would get its number, and the bytes that were meant for the other.

Each kind of work has its own threads, so that slow work of one kind does not delay another: a
manifest is read while a slow disk syncs blobs. The index has its own thread (``index.worker``).
"""

import asyncio
import contextlib
import contextvars
import os
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

LARGE: Final = 64 * 1024
"""Bytes. Hashing or parsing fewer takes the loop less time than a change of threads."""


class Pool(Enum):
    """What kind of work a thread does."""

    READ = "read"
    """Small content that a request waits for."""
    STREAM = "stream"
    """Blobs, ahead of their being sent."""
    WRITE = "write"
    """Spool files: making and filling them, and removing files."""
    SYNC = "sync"
    """fsync and rename. A thread only waits for the disk, so there are many."""
    COMPUTE = "compute"
    """Hashing and parsing of what a request waits for."""
    UPKEEP = "upkeep"
    """What no request waits for: listing, verifying and repairing what is held."""
    EXPIRING = "expiring"
    """The file of ``index.expiring``, one step after the other."""
    FALLBACK = "fallback"
    """Other directories to read from: slow or lost media delay only what they are asked for."""


_CORES: Final = os.cpu_count() or 1
_THREADS: Final[Mapping[Pool, int]] = {
    Pool.READ: 8,
    Pool.STREAM: 8,
    Pool.WRITE: 8,
    Pool.SYNC: 32,
    Pool.COMPUTE: _CORES + 2,
    Pool.UPKEEP: 4,
    Pool.EXPIRING: 1,
    Pool.FALLBACK: 4,
}
_EXECUTORS: Final = {
    pool: ThreadPoolExecutor(threads, thread_name_prefix=pool.value)
    for pool, threads in _THREADS.items()
}


async def in_thread(work: Callable[[], Result], pool: Pool = Pool.READ) -> Result:
    """Return what blocking ``work`` returns; a cancellation is raised once the thread has ended."""
    return await to_its_end(_run(work, pool))


async def by_size(size: int, work: Callable[[], Result]) -> Result:
    """Return what ``work`` computes from ``size`` bytes: in a thread if these are many."""
    return work() if size <= LARGE else await in_thread(work, Pool.COMPUTE)


async def to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what ``work`` returns; a cancellation is raised once it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():  # however often we are cancelled
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


def start_in_thread(work: Callable[[], Result], pool: Pool) -> asyncio.Future[Result]:
    """Start blocking ``work``; its owner waits for the future before it closes a file."""
    return asyncio.get_running_loop().run_in_executor(_EXECUTORS[pool], work)


async def _run(work: Callable[[], Result], pool: Pool) -> Result:
    in_context = partial(contextvars.copy_context().run, work)
    return await asyncio.get_running_loop().run_in_executor(_EXECUTORS[pool], in_context)
