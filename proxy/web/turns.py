"""Shares each turn of the event loop out among those who send from memory.

The kernel takes megabytes for each connection at once, even if the client reads nothing. Whoever
writes until the kernel takes no more never lets the loop turn, and hundreds of them hold up
everybody else for seconds.
"""

import asyncio
from collections import deque
from typing import Final

EACH: Final = 16
"""Pieces that are written in one turn, by all connections together."""


class Turns:
    """Permits ``each`` steps in one turn of the loop; those who wait go in their order."""

    def __init__(self, each: int = EACH) -> None:
        self._each = each
        self._left = each
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_due = False

    async def take(self) -> None:
        """Return when one more step may be made."""
        loop = asyncio.get_running_loop()
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._begin)
        if self._left:
            self._left -= 1
            return
        step: asyncio.Future[None] = loop.create_future()
        self._waiting.append(step)
        await step

    def _begin(self) -> None:
        """Begin a turn: permit steps to those who wait first."""
        self._left = self._each
        while self._left and self._waiting:
            step = self._waiting.popleft()
            if not step.done():  # its connection may be closed
                step.set_result(None)
                self._left -= 1
        self._is_due = self._left < self._each
        if self._is_due:
            asyncio.get_running_loop().call_soon(self._begin)
