"""Reads rows in the event loop while the page cache has the file.

To switch threads costs more than to read some rows. But a page that comes from the disk stops the
loop. So samples say every few seconds how much of the file is cached: if it is not nearly all,
``Threads`` reads. The rest is bounded: after a read that waited for the disk there is a pause in
proportion.
Of a file that is not cached, what is missing is read, but only so much of it over time.
"""

import asyncio
import resource
import sqlite3
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from proxy.index.database import Database
from proxy.index.values import Unreadable
from proxy.runtime import page_cache
from proxy.runtime.executors import Pool, in_thread

CHECK_SECONDS: Final = 5.0
FILL_SECONDS: Final = 600.0
"""Seconds in which at most as much is read into the page cache as the file is long."""

_NEARLY_ALL: Final = 0.95
_SLOW: Final = 0.001
"""Seconds. A faster read is no reason to find out if it has waited for the disk."""

_PAUSE: Final = 10
"""Times that a read from the disk took until the next one may begin."""

_MAX_FILLED: Final = 1 << 30
"""Bytes. A larger file is not read only to have it in the page cache."""


class Peek:
    """Reads the file of a database, which is open."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self._generation = 0
        self._resumes_at = 0.0
        self._may_fill = 1.0
        """Share of the file that may be read into the page cache, as of ``_counted_at``."""
        self._counted_at = time.monotonic()

    def read(
        self, work: Callable[[sqlite3.Connection], dict[Hashable, Any]]
    ) -> dict[Hashable, Any]:
        """Return the facts that ``work`` reads, none if they may have to come from the disk."""
        started = time.perf_counter()
        if self._connection is None or started < self._resumes_at:
            return {}
        if self._generation != self._database.generation:
            return {}
        blocks = _blocks_read()
        try:
            return work(self._connection)
        except (sqlite3.Error, Unreadable):  # ``Threads`` repairs what is damaged
            self.close()
            return {}
        finally:
            ended = time.perf_counter()
            if ended - started > _SLOW and _blocks_read() > blocks:
                self._resumes_at = ended + _PAUSE * (ended - started)

    async def watch(self) -> None:
        """Look again and again how much the page cache has, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(CHECK_SECONDS)

    async def look(self) -> None:
        """Find out if ``read`` may read."""
        generation = self._database.generation
        if not await in_thread(self._is_cached, Pool.UPKEEP):
            self.close()
        elif self._connection is None or self._generation != generation:
            self.close()
            self._generation = generation
            with suppress(sqlite3.Error):
                await in_thread(self._connect, Pool.UPKEEP)

    def close(self) -> None:
        """Read no more, until ``look``."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> None:
        connection = self._database.reader()
        connection.execute("PRAGMA busy_timeout = 0")
        self._connection = connection

    def _is_cached(self) -> bool:
        """Return True if nearly all of the file and its journal is cached; may read them first."""
        file = self._database.file
        files = file, Path(f"{file}-wal")
        now, share = time.monotonic(), min(map(_share, files))
        self._may_fill = min(1.0, self._may_fill + (now - self._counted_at) / FILL_SECONDS)
        self._counted_at = now
        if share >= _NEARLY_ALL or self._may_fill < 1 - share:
            return share >= _NEARLY_ALL
        # Nothing more is read meanwhile, nor soon afterwards if the kernel does not keep the file.
        allowed, self._may_fill = self._may_fill, 0.0
        for path in files:
            with suppress(OSError), path.open("rb") as opened:
                if (size := path.stat().st_size) <= _MAX_FILLED:
                    page_cache.fill(opened.fileno(), size)
        if min(map(_share, files)) < _NEARLY_ALL:
            return False
        self._may_fill = allowed - (1 - share)
        return True


def _blocks_read() -> int:
    """Return how many blocks this thread has read from disks."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


def _share(path: Path) -> float:
    """Return how much of a file is cached: 1 is all, also of one that does not exist."""
    try:
        with path.open("rb") as file:
            return page_cache.share(file.fileno(), path.stat().st_size)
    except OSError:
        return 1.0
