"""One table of JSON rows in a SQLite file, through diskcache.

Rows are JSON: diskcache's default pickles (CVE-2025-69872), and its default limits would delete
rows of ours at 1 GB. Everything here blocks; ``index.local`` calls it from one worker thread.
"""

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from diskcache import Cache, JSONDisk, Timeout

from proxy.errors import ConfigError, StorageError

UNREADABLE: Final = (ValueError, TypeError, LookupError, zlib.error)
_BATCH: Final = 2000
_DISK_FAILS: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)
_ROWS: Final = "SELECT rowid, key, raw, mode, filename, value FROM Cache WHERE rowid"

Row = TypeVar("Row")
log = structlog.get_logger(__name__)


class Table:
    """A mapping from JSON values to JSON values; ``was_damaged`` tells that rows may be lost.

    ``is_durable``: what has been written survives a power cut, not only the end of the process.
    """

    def __init__(self, directory: Path, *, is_durable: bool = False) -> None:
        """Open the file; what can be read of a damaged one goes into a new one.

        Raises ``StorageError`` when the disk fails, ``ConfigError`` when it is none of ours.
        """
        self._directory = directory
        self._synchronous = 2 if is_durable else 1
        self.was_damaged = False
        try:
            self._cache = self._open()
        except sqlite3.OperationalError as error:
            if _code(error) in _DISK_FAILS and directory.is_dir():
                raise StorageError(f"opening {directory}: {error}") from error
            raise ConfigError(f"storage.path: {directory} cannot be opened: {error}") from None
        except Timeout as error:
            raise ConfigError(f"storage.path: {directory} cannot be opened: {error}") from None
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def close(self) -> None:
        """Close the file."""
        self._cache.close()

    def get(self, key: object, otherwise: Any = None) -> Any:
        """Return a row's value."""
        return self._cache.get(key, otherwise)

    def set(self, rows: Iterable[tuple[object, object]]) -> None:
        """Write rows in one transaction."""
        with self._transaction():
            for key, value in rows:
                self._cache.set(key, value)

    def delete(self, keys: Iterable[object]) -> None:
        """Delete rows in one transaction."""
        with self._transaction():
            for key in keys:
                self._cache.delete(key)

    def batches(self, parse: Callable[[Any, Any], Row]) -> Iterator[list[Row]]:
        """Yield what ``parse`` makes of each key and value, a few thousand at once.

        What cannot be read is left out.

        Reads diskcache's file itself: a query a batch instead of two a row is five times as fast.
        A file that turns out to be damaged is begun anew with what can be read.
        """
        after = 0
        while True:
            try:
                with closing(self._reader(self._directory)) as reader:
                    query = f"{_ROWS} > ? ORDER BY rowid LIMIT {_BATCH}"
                    rows = reader.execute(query, (after,)).fetchall()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._begin_anew(error)
                continue
            if not rows:
                return
            after = rows[-1][0]
            decoded = (self._decoded(row, parse) for row in rows)
            yield [row for row in decoded if row is not None]

    def _decoded(self, row: tuple[Any, ...], parse: Callable[[Any, Any], Row]) -> Row | None:
        _, key, raw, mode, filename, value = row
        disk = self._cache.disk
        try:
            whole = disk.fetch(mode, filename, value, False)  # noqa: FBT003 - its signature
            return parse(disk.get(key, raw), whole)
        except (*UNREADABLE, OSError) as error:
            log.error("unreadable index row", table=str(self._directory), error=repr(error))
            return None

    def _open(self) -> Cache:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            directory = self._directory.parent
            raise ConfigError(
                f"storage.path: {directory} cannot be opened: {error.strerror}"
            ) from None
        except OSError as error:
            raise StorageError(f"making {self._directory}: {error}") from error
        return Cache(
            str(self._directory),
            disk=JSONDisk,
            disk_compress_level=0,
            disk_min_file_size=1 << 30,
            eviction_policy="none",
            cull_limit=0,
            tag_index=False,
            statistics=False,
            sqlite_synchronous=self._synchronous,
        )

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """Set a damaged file aside, and copy into a new one what can be read of it."""
        self.was_damaged = True
        aside = self._directory.with_name(f"{self._directory.name}.unreadable-{time.time_ns()}")
        self._directory.rename(aside)
        self._cache = self._open()
        saved = self._salvage(aside)
        log.error("index damaged, begun anew", error=str(error), kept_as=str(aside), saved=saved)

    def _salvage(self, aside: Path) -> int:
        """Copy rows from the front up to the damage, then from the back down to it."""
        saved = 0
        with self._transaction():
            for order in ("", "DESC"):
                try:
                    with closing(self._reader(aside)) as reader:
                        for row in reader.execute(f"{_ROWS} > 0 ORDER BY rowid {order}"):
                            pair = self._decoded(row, lambda key, value: (key, value))
                            if pair is not None:
                                self._cache.set(*pair)
                                saved += 1
                        return saved
                except sqlite3.DatabaseError:
                    continue
        return saved

    def _reader(self, directory: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{directory / 'cache.db'}?mode=ro", uri=True)

    def _transaction(self) -> AbstractContextManager[None]:
        transaction: AbstractContextManager[None] = self._cache.transact()
        return transaction


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
