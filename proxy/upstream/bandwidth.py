"""Limits the bytes per second of one upstream, and shares them fairly by its downloads.

A token bucket with debt: bytes are paid after they were read, and the next payment waits until
they are paid off. Payments are made in turn, first come, first served. Every download waits for one
payment at a time, however many connections it has, and reads pieces of equal size; so all get the
same share.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

BURST_SECONDS: Final = 0.1
"""Seconds of bandwidth that an idle upstream accumulates."""

PIECES_PER_SECOND: Final = 20
MIN_PIECE: Final = 4096
LARGEST_PIECE: Final = 64 * 1024
"""Bytes. Larger pieces would let a fast download overtake a slow one."""


class Bandwidth:
    """The bucket of one upstream; ``rate`` is in bytes per second, and not 0."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._free_at = clock()
        self._turn = asyncio.Lock()
        self.piece: Final = min(max(rate // PIECES_PER_SECOND, MIN_PIECE), LARGEST_PIECE)
        """Most bytes to read at once."""

    async def throttle(self, count: int) -> None:
        """Wait until ``count`` bytes, which were read, are within the limit."""
        async with self._turn:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + count / self._rate
            if self._free_at > now:
                await asyncio.sleep(self._free_at - now)

    def share(self) -> "Share":
        """Return the share of a new download."""
        return Share(self)


class Share:
    """The account of one download, over all its connections."""

    def __init__(self, bandwidth: Bandwidth) -> None:
        self._bandwidth = bandwidth
        self._turn = asyncio.Lock()
        self.piece: Final = bandwidth.piece

    async def throttle(self, count: int) -> None:
        """Wait as ``Bandwidth.throttle``, after the download's other connections."""
        async with self._turn:
            await self._bandwidth.throttle(count)
