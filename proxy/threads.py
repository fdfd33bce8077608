"""Work that is never left half done by a cancellation.

A cancelled task does not stop its thread. Were a file closed meanwhile, the next one to be opened
would get its number, and the bytes that were meant for the other.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def in_thread(work: Callable[[], Result]) -> Result:
    """Return what blocking ``work`` returns; a cancellation is raised once the thread has ended."""
    return await to_its_end(asyncio.to_thread(work))


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
