"""Queued events: one bounded queue for each receiver, in a SQLite file.

The file is created with the first event. Events survive the end of the process; a power cut may
lose the changes of the last moments (``synchronous=NORMAL``), so that an event may be lost or sent
again. A damaged file is set aside, and its events are lost.
"""

import asyncio
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from uuid import uuid4

import structlog

from proxy.core.errors import StorageError
from proxy.index.database import is_damage
from proxy.runtime.executors import run_to_completion

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS waiting (id INTEGER PRIMARY KEY, receiver TEXT NOT NULL,
  message TEXT NOT NULL, added_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
  due REAL NOT NULL DEFAULT 0, event TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS waiting_due ON waiting (receiver, due, id);
"""
"""``due`` is of the monotonic clock of this process; 0 after a start."""

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class Waiting(NamedTuple):
    """One queued event. ``message`` identifies it at its receiver, and never changes.

    ``added_at`` is in Unix seconds, ``event`` is JSON.
    """

    id: int
    message: str
    added_at: float
    attempts: int
    event: str


class Outbox:
    """The queues of all receivers. Close it when done. Verbs raise ``StorageError``."""

    def __init__(self, file: Path) -> None:
        self.lengths: Final[Counter[str]] = Counter()
        """How many events wait for each receiver, as of the last ``trim`` and removals since."""
        self._file = file
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")

    async def close(self) -> None:
        """Close the file."""
        await self._run(self._close)
        self._thread.shutdown()

    async def add(self, rows: Iterable[tuple[str, str]], now: float) -> None:
        """Add events, each with its receiver, at a time in Unix seconds."""
        added = [(receiver, f"msg_{uuid4().hex}", now, event) for receiver, event in rows]
        sql = "INSERT INTO waiting (receiver, message, added_at, event) VALUES (?, ?, ?, ?)"
        await self._change(lambda db: db.executemany(sql, added))

    async def next(self, receiver: str) -> Waiting | float | None:
        """Return the event that is due, the seconds until one is, or None without events."""
        sql = (
            "SELECT due, id, message, added_at, attempts, event FROM waiting WHERE receiver = ? "
            "ORDER BY due, id LIMIT 1"
        )
        row = await self._change(lambda db: db.execute(sql, [receiver]).fetchone())
        if row is None:
            return None
        left: float = row[0] - time.monotonic()
        return left if left > 0 else Waiting(*row[1:])

    async def remove(self, receiver: str, waiting: Waiting) -> None:
        """Remove an event: it was delivered, or is dropped."""
        sql = "DELETE FROM waiting WHERE id = ?"

        def remove(db: sqlite3.Connection) -> None:
            self.lengths[receiver] -= db.execute(sql, [waiting.id]).rowcount

        await self._change(remove)

    async def postpone(self, waiting: Waiting, seconds: float) -> None:
        """Count a failed attempt, and set the event due in some seconds."""
        sql = "UPDATE waiting SET attempts = attempts + 1, due = ? WHERE id = ?"
        due = time.monotonic() + seconds
        await self._change(lambda db: db.execute(sql, [due, waiting.id]))

    async def trim(self, receiver: str, most: int) -> int:
        """Remove the oldest events beyond ``most``; return how many were removed."""

        def trim(db: sqlite3.Connection) -> int:
            count = "SELECT count(*) FROM waiting WHERE receiver = ?"
            found: int = db.execute(count, [receiver]).fetchone()[0]
            excess = max(0, found - most)
            if excess:
                db.execute(
                    "DELETE FROM waiting WHERE id IN "
                    "(SELECT id FROM waiting WHERE receiver = ? ORDER BY id LIMIT ?)",
                    [receiver, excess],
                )
            self.lengths[receiver] = found - excess
            return excess

        return await self._change(trim)

    async def expire(self, before: float) -> None:
        """Remove all events that were added before a time in Unix seconds."""
        sql = "DELETE FROM waiting WHERE added_at < ?"
        await self._change(lambda db: db.execute(sql, [before]))

    async def _change(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        return await self._run(partial(self._work, work))

    async def _run(self, work: Callable[[], Result]) -> Result:
        async def run() -> Result:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

        return await run_to_completion(run())

    def _work(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            with self._opened() as connection:
                return work(connection)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            raise StorageError(f"{self._file}: {error}") from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self._file, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
                with connection:
                    connection.execute("UPDATE waiting SET due = 0")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _give_up(self, error: Exception) -> None:
        """Set a damaged file aside; the next change begins a new one."""
        if not is_damage(error):
            return
        self._close()
        log.error("queued events are lost", file=str(self._file), error=str(error))
        self._file.replace(self._file.with_suffix(".damaged"))
        for suffix in ("-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
