"""One table of JSON rows in a SQLite file, through diskcache.

Rows are JSON: diskcache's default pickles (CVE-2025-69872), and its default limits would delete
rows of ours at 1 GB. The file may have been written by others, and only this user may read it.
Everything here blocks; ``index.local`` calls it from one worker thread.
"""

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import structlog
from diskcache import Cache, JSONDisk, Timeout

from proxy.core.errors import ConfigError, StorageError

UNREADABLE: Final = (
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    RecursionError,
    AttributeError,
    zlib.error,
)
"""What rows can raise that are not as this program writes them."""

_RAW: Final = 1
"""diskcache's mode of a value that is in the row itself, as it is."""

_PAGE: Final = 4096
_JOURNAL: Final = 1024 * 1024
"""Bytes. A journal grows to about as many before it is written into the file."""

_MAX_ROW: Final = 64 * 1024 * 1024
_METADATA: Final = "('count', 'size', 'hits', 'misses')"
_FILE: Final = "cache.db"
_BATCH: Final = 2000
_DISK_FAILS: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)
_ROWS: Final = "SELECT rowid, key, raw, mode, filename, value FROM Cache WHERE rowid"

Row = TypeVar("Row")
log = structlog.get_logger(__name__)


class _RowsOnly(JSONDisk):  # type: ignore[misc]
    """Reads JSON that is in the row itself, as this program writes it, and nothing else.

    Of diskcache's other modes one unpickles, which runs code, and the others name a file to read.
    """

    def get(self, key: Any, raw: object) -> Any:
        if not raw or not isinstance(key, bytes):
            raise ValueError("the key is not JSON")
        return _from_json(key)

    def fetch(self, mode: int, filename: str | None, value: Any, read: object) -> Any:
        if mode != _RAW or filename is not None or read or not isinstance(value, bytes):
            raise ValueError("the value is not JSON")
        return _from_json(value)

    def remove(self, file_path: str) -> None:
        """Remove nothing: no row of this program has a file."""


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
        self.dropped = 0
        """Rows that could not be read and are deleted."""
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

    @property
    def file_bytes(self) -> int:
        """Bytes of the file and its journal."""
        found = 0
        for path in self._directory.glob("cache.db*"):
            with suppress(FileNotFoundError):  # a journal may be removed at any time
                found += path.stat().st_size
        return found

    def get(
        self, key: object, otherwise: Any = None, parse: Callable[[Any], Any] = lambda row: row
    ) -> Any:
        """Return what ``parse`` makes of a row's value; a row that cannot be read is deleted."""
        try:
            row = self._cache.get(key)
            return otherwise if row is None else parse(row)
        except UNREADABLE as error:
            self.delete([key])
            self._count_dropped(1, error)
            return otherwise

    def shrink(self) -> None:
        """Give the room of deleted rows back to the file system."""
        with closing(sqlite3.connect(self._directory / _FILE)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

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

        Rows that cannot be read are deleted and counted.

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
            read, unreadable = [], []
            for row in rows:
                try:
                    read.append(self._decoded(row, parse))
                except UNREADABLE as error:
                    unreadable.append((row[0], error))
            if unreadable:
                self._drop(rowid for rowid, _ in unreadable)
                self._count_dropped(len(unreadable), unreadable[0][1])
            yield read

    def _decoded(self, row: tuple[Any, ...], parse: Callable[[Any, Any], Row]) -> Row:
        _, key, raw, mode, filename, value = row
        disk = self._cache.disk
        return parse(disk.get(key, raw), disk.fetch(mode, filename, value, None))

    def _drop(self, rows: Iterable[int]) -> None:
        """Delete rows by their number: their keys may not be readable."""
        with closing(sqlite3.connect(self._directory / _FILE)) as connection, connection:
            connection.executemany("DELETE FROM Cache WHERE rowid = ?", ((row,) for row in rows))

    def _count_dropped(self, rows: int, error: Exception) -> None:
        self.dropped += rows
        table = str(self._directory)
        log.error("unreadable index rows deleted", table=table, rows=rows, error=repr(error))

    def _open(self) -> Cache:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_private(self._directory, self._directory / _FILE)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            directory = self._directory.parent
            raise ConfigError(
                f"storage.path: {directory} cannot be opened: {error.strerror}"
            ) from None
        except OSError as error:
            raise StorageError(f"making {self._directory}: {error}") from error
        self._forget_settings()
        return Cache(
            str(self._directory),
            disk=_RowsOnly,
            disk_compress_level=0,
            disk_min_file_size=1 << 30,
            eviction_policy="none",
            cull_limit=0,
            tag_index=False,
            statistics=False,
            sqlite_synchronous=self._synchronous,
            sqlite_trusted_schema=0,
            sqlite_wal_autocheckpoint=_JOURNAL // _PAGE,
            sqlite_journal_size_limit=_JOURNAL,
        )

    def _forget_settings(self) -> None:
        """Delete the settings in the file: diskcache would make any of them its own attributes."""
        with closing(sqlite3.connect(self._directory / _FILE)) as connection, connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if ("Settings",) in tables.fetchall():
                connection.execute(f"DELETE FROM Settings WHERE key NOT IN {_METADATA}")  # noqa: S608

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
                            try:
                                pair = self._decoded(row, lambda key, value: (key, value))
                            except UNREADABLE:
                                continue
                            self._cache.set(*pair)
                            saved += 1
                        return saved
                except sqlite3.DatabaseError:
                    continue
        return saved

    def _reader(self, directory: Path) -> sqlite3.Connection:
        path = quote(str(directory.absolute() / _FILE))  # RFC 3986: it may hold "#", "?" or "%"
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def _transaction(self) -> AbstractContextManager[None]:
        transaction: AbstractContextManager[None] = self._cache.transact()
        return transaction


def make_private(directory: Path, file: Path | None = None) -> None:
    """Let only this user into a directory and its files, whatever the umask. Raises ``OSError``.

    ``file`` is made if it is not there, so that SQLite does not make it for others to read; its
    journals get its mode. What belongs to another user is left as it is.
    """
    if file is not None:
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    modes = {path: 0o600 for path in directory.iterdir() if path.is_file()}
    for path, mode in {directory: 0o700, **modes}.items():
        try:
            if path.stat().st_mode & 0o777 != mode:
                path.chmod(mode)
        except PermissionError as error:
            log.warning("others may read the index", path=str(path), error=str(error))
        except FileNotFoundError:
            continue  # a journal, which SQLite removes when its last connection is closed


def _from_json(data: bytes) -> Any:
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(data, _MAX_ROW)
    if not decompressor.eof:
        raise ValueError("the row is cut off, or too large")
    return json.loads(text)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
