"""Limits the open bodies of one upstream: downloads in turn, range workers in idle slots.

State and futures, no I/O.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class PreemptibleSlot:
    """A slot that its task loses when a download needs it: the task is cancelled then."""

    def __init__(self, slots: "Slots") -> None:
        self.task: asyncio.Task[Any] | None = None
        self._slots = slots
        self._is_held = True

    def release(self) -> None:
        """Free the slot; does nothing if it was preempted, or the second time."""
        if self._is_held:
            self._is_held = False
            self._slots.reclaim(self)

    def preempt(self) -> None:
        """Take the slot for another use."""
        self._is_held = False
        if self.task is not None:
            self.task.cancel()


class Slots:
    """``count`` slots for bodies.

    After the timeout a waiter exceeds the bound instead of failing, up to ``count`` at a time.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = count
        self._over_limit = 0
        self._lent: list[PreemptibleSlot] = []
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def has_spare(self) -> bool:
        """At least half of the slots stay free if one more is taken."""
        return (self._free - 1) * 2 >= self._count

    @asynccontextmanager
    async def occupy(self, patience: float) -> AsyncIterator[None]:
        """Occupy a slot while the context is open.

        There are three cases: one is free or becomes free within ``patience`` seconds; none does,
        and fewer than ``count`` exceed the limit; else one becomes free within the same time again,
        or ``TimeoutError`` is raised.
        """
        is_over_limit = False
        try:
            await self._acquire(patience)
        except TimeoutError:
            is_over_limit = self._over_limit < self._count
            if not is_over_limit:
                await self._acquire(patience)
        self._over_limit += is_over_limit
        try:
            yield
        finally:
            if is_over_limit:
                self._over_limit -= 1
            else:
                self._release()

    def borrow(self) -> PreemptibleSlot | None:
        """Borrow a free slot until it is released or preempted; None if none is free."""
        if self._free == 0:
            return None
        self._free -= 1
        slot = PreemptibleSlot(self)
        self._lent.append(slot)
        return slot

    def reclaim(self, slot: PreemptibleSlot) -> None:
        """Free a slot that was lent."""
        self._lent.remove(slot)
        self._release()

    async def _acquire(self, patience: float) -> None:
        if self._free > 0:
            self._free -= 1
            return
        if self._lent:
            self._lent.pop().preempt()
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(patience):
                await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._release()  # the slot was given just when this was cancelled
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def _release(self) -> None:
        """Give a slot to the next that waits.

        A waiter whose time is up is cancelled, and stays in the queue until its task runs.
        """
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
