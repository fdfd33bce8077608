"""Blocking work in a thread, which is never left behind.

A cancelled task does not stop its thread. Were a file closed meanwhile, the next one to be opened
would get its number, and the bytes that were meant for the other.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread(work: Callable[[], Result]) -> Result:
    """Return what ``work`` returns; a cancellation is raised once the thread has ended."""
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        while not thread.done():  # however often we are cancelled
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([thread])
        if not thread.cancelled():
            thread.exception()
        raise
