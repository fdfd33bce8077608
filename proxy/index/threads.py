"""The threads of the index: one that writes, and some that read.

Writes that wait for a running commit share the next transaction, so many callers cost one commit.
If a transaction fails, each of its writes is tried separately, so that one cannot fail the others.
Lookups that begin in the same turn of the loop share one switch of threads, which costs more than
a lookup.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from proxy.core.errors import StorageError
from proxy.index.database import Database, is_damage
from proxy.index.values import Unreadable

READERS: Final = 3

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
_TROUBLE: Final = (sqlite3.Error, OSError, Unreadable)


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class Write:
    """Work that changes the rows of ``keys``.

    ``then`` is called with what the work returns. ``done`` gets that, or the exception.
    """

    work: Work[Any]
    keys: tuple[Hashable, ...]
    then: Callable[[Any], None] = lambda _: None
    is_durable: bool = False
    done: asyncio.Future[Any] = field(default_factory=_future)


class Threads:
    """Runs work on the database, and rebuilds it when it is damaged.

    ``settle`` is called with the outcome of each write, before those that wait for it go on, and
    ``renewed`` when the file has been made anew.
    """

    def __init__(
        self,
        database: Database,
        settle: Callable[[Write, Any], None],
        renewed: Callable[[], None],
    ) -> None:
        self._database = database
        self._settle = settle
        self._renewed = renewed
        self._generation = 0
        self._loop = asyncio.get_running_loop()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="index-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="index-read")
        self._connections: deque[tuple[int, sqlite3.Connection]] = deque()
        self._lookups: list[tuple[Work[Any], asyncio.Future[Any]]] = []
        self._queue: list[Write] = []
        self._last: asyncio.Future[Any] | None = None
        self._is_writing = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return the result of ``work`` in the thread that writes."""
        return await self._loop.run_in_executor(self._writer, work)

    async def close(self) -> None:
        """Write everything that waits, and close the database."""
        await self.written()
        self._readers.shutdown()
        for _, connection in self._connections:
            connection.close()
        await self.run(self._database.close)
        self._writer.shutdown()

    def submit(self, write: Write) -> None:
        """Begin to write."""
        self._last = write.done
        self._queue.append(write)
        if not self._is_writing:
            self._begin()

    async def written(self) -> None:
        """Return once everything that was written until now is committed, or has failed."""
        if self._is_writing and self._last is not None:
            await asyncio.wait([self._last])

    async def read(self, work: Work[Result]) -> Result:
        """Return the result of ``work``. Raises ``StorageError``."""
        found = await self._loop.run_in_executor(self._readers, self._outcome, work)
        self._notice()
        result: Result = _result(found)
        return result

    async def look_up(self, work: Work[Result]) -> Result:
        """As ``read``, for ``work`` that is short: others may wait until it is done."""
        done: asyncio.Future[Any] = _future()
        self._lookups.append((work, done))
        if len(self._lookups) == 1:
            self._loop.call_soon(self._begin_lookups)
        result: Result = _result(await done)
        return result

    def _begin_lookups(self) -> None:
        batch, self._lookups = self._lookups, []

        def look_up() -> list[Any]:
            return [self._outcome(work) for work, _ in batch]

        def answer(ended: asyncio.Future[list[Any]]) -> None:
            self._notice()
            for (_, done), outcome in zip(batch, ended.result(), strict=True):
                if not done.done():  # the caller may have been cancelled
                    done.set_result(outcome)

        self._loop.run_in_executor(self._readers, look_up).add_done_callback(answer)

    def _begin(self) -> None:
        batch, self._queue = self._queue, []
        self._is_writing = True
        running = self._loop.run_in_executor(self._writer, self._commit, batch)
        running.add_done_callback(lambda done: self._finish(batch, done.result()))

    def _finish(self, batch: list[Write], outcomes: list[Any]) -> None:
        self._is_writing = False
        if self._queue:
            self._begin()
        for write, outcome in zip(batch, outcomes, strict=True):
            self._settle(write, outcome)
            write.done.set_result(outcome)
        self._notice()

    def _notice(self) -> None:
        if self._generation != self._database.generation:
            self._generation = self._database.generation
            self._renewed()

    def _commit(self, batch: list[Write]) -> list[Any]:
        """Return an outcome for each write."""
        try:
            return self._transact(batch)
        except Exception as error:
            if len(batch) > 1:
                return [outcome for write in batch for outcome in self._commit([write])]
            if not isinstance(error, _TROUBLE):
                return [error]
            return [StorageError(f"writing to the index: {error}")]

    def _transact(self, batch: list[Write]) -> list[Any]:
        steps = [write.work for write in batch]
        is_durable = any(write.is_durable for write in batch)
        generation = self._database.generation
        try:
            return self._database.transact(steps, is_durable=is_durable)
        except Exception as error:
            if not is_damage(error):
                raise
            self._database.rebuild(generation, error)
            return self._database.transact(steps, is_durable=is_durable)

    def _outcome(self, work: Work[Any]) -> Any:
        """Return what ``work`` returns, or the exception."""
        try:
            return self._read(work)
        except Exception as error:
            return error

    def _read(self, work: Work[Result]) -> Result:
        generation = self._database.generation
        try:
            return self._read_once(work)
        except Exception as error:
            if not is_damage(error):
                raise
            self._writer.submit(self._database.rebuild, generation, error).result()
            return self._read_once(work)

    def _read_once(self, work: Work[Result]) -> Result:
        generation, connection = self._connection()
        try:
            found = work(connection)
        except BaseException:
            connection.close()
            raise
        self._connections.append((generation, connection))
        return found

    def _connection(self) -> tuple[int, sqlite3.Connection]:
        while True:
            try:
                generation, connection = self._connections.pop()
            except IndexError:
                return self._database.generation, self._database.reader()
            if generation == self._database.generation:
                return generation, connection
            connection.close()


def _result(outcome: Result | Exception) -> Result:
    """Return an outcome. Raises it if it is an exception, trouble as ``StorageError``."""
    if isinstance(outcome, _TROUBLE):
        raise StorageError(f"reading the index: {outcome}") from outcome
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
