"""When a process is killed: at any moment, or right at one at which something has just changed."""

import asyncio
import random
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final

PATIENCE: Final = 0.5
"""Seconds after which a moment that does not come is waited for no longer."""


class Moment(Enum):
    """What is waited for before the kill."""

    START = "while it starts"
    RANDOM = "at any moment"
    ACKNOWLEDGED = "right after an answer"
    STORED = "right after a blob came"
    EVICTED = "right after a blob went"
    SPOOLED = "right after a download began"
    PINNED = "right after a pin was acknowledged"
    TERMINATED = "asked to stop, at any moment"


def watch(storage: Path, moment: Moment, strike: Callable[[], None]) -> bool:
    """Block until a file appears or disappears as `moment` says, and `strike` at once."""
    directory = storage / ("spool" if moment is Moment.SPOOLED else "blobs/sha256")
    end = time.monotonic() + PATIENCE
    before = _names(directory)
    while time.monotonic() < end:
        now = _names(directory)
        if now - before if moment is not Moment.EVICTED else before - now:
            strike()
            return True
        before = now
        time.sleep(0.0003)
    strike()
    return False


async def happened(event: asyncio.Event) -> bool:
    """Wait for an event yet to come; return whether it came."""
    event.clear()
    try:
        async with asyncio.timeout(PATIENCE):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def some_time(rng: random.Random, longest: float) -> None:
    """Wait, mostly shortly."""
    await asyncio.sleep(longest * rng.random() ** 2)


def _names(directory: Path) -> set[str]:
    try:
        return {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return set()
