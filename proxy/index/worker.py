"""The one thread that does the index's disk work, in order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from proxy.core.errors import StorageError

Result = TypeVar("Result")
Item = TypeVar("Item")
log = structlog.get_logger(__name__)


class Worker:
    """Runs blocking work beside the loop; calls ``on_trouble`` for failures that are survived."""

    def __init__(self, on_trouble: Callable[[], None]) -> None:
        self.on_trouble = on_trouble
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")

    def close(self) -> None:
        """Wait for what has been begun."""
        self._thread.shutdown()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns; raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def survive(self, work: Callable[[], Result], otherwise: Result) -> Result:
        """Return what ``work`` returns, or ``otherwise`` when it fails."""
        try:
            return await self.run(work)
        except Exception as error:
            self.on_trouble()
            log.warning("index trouble, carried on without", error=repr(error))
            return otherwise

    async def batches(self, begin: Callable[[], Iterator[list[Item]]]) -> AsyncIterator[list[Item]]:
        """Yield what an iterator yields in the thread, with others' work in between.

        Raises ``StorageError`` when it fails: rows that are missing are not rows that are gone.
        """
        try:
            batches = await self.run(begin)
            while (batch := await self.run(lambda: next(batches, None))) is not None:
                yield batch
        except Exception as error:
            self.on_trouble()
            raise StorageError(f"reading the index: {error}") from error
