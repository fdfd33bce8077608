"""Who may have a body open at one upstream: downloads in their order, helpers while there is room.

State and futures, no I/O.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class PreemptibleSlot:
    """A place that somebody can do without; it is taken back when it is wanted."""

    def __init__(self, places: "Slots", on_recall: Callable[[], None]) -> None:
        self._places = places
        self._on_recall = on_recall
        self._held = True

    def give_back(self) -> None:
        """Let others have it; does nothing after a recall, or twice."""
        if self._held:
            self._held = False
            self._places.returned(self)

    def recall(self) -> None:
        """Take it back, and say so."""
        self._held = False
        self._on_recall()


class Slots:
    """``count`` places for bodies.

    Who has waited in vain goes beyond the bound rather than fail, but no more than ``count`` do.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = count
        self._beyond = 0
        self._loans: list[PreemptibleSlot] = []
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def has_some_to_spare(self) -> bool:
        """Half of the places stay free though one more is taken."""
        return (self._free - 1) * 2 >= self._count

    @asynccontextmanager
    async def one(self, patience: float) -> AsyncIterator[None]:
        """Have a place while the context is open. Raises ``TimeoutError``.

        It is waited for ``patience`` seconds, then gone without, then waited for as long again.
        """
        beyond = False
        try:
            await self._take(patience)
        except TimeoutError:
            beyond = self._beyond < self._count
            if not beyond:
                await self._take(patience)
        self._beyond += beyond
        try:
            yield
        finally:
            if beyond:
                self._beyond -= 1
            else:
                self._give_back()

    def borrow(self, on_recall: Callable[[], None]) -> PreemptibleSlot | None:
        """Return a free place, until it is given back or recalled; None when there is none."""
        if self._free == 0:
            return None
        self._free -= 1
        loan = PreemptibleSlot(self, on_recall)
        self._loans.append(loan)
        return loan

    def returned(self, loan: PreemptibleSlot) -> None:
        """Take note that a loan has ended."""
        self._loans.remove(loan)
        self._give_back()

    async def _take(self, patience: float) -> None:
        if self._free > 0:
            self._free -= 1
            return
        if self._loans:
            self._loans.pop().recall()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(patience):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._give_back()  # it came in the moment in which we left
            else:
                self._waiting.remove(turn)
            raise

    def _give_back(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1
