"""Rows that expire and may be lost: the last answers of upstreams, for an outage or a restart.

The only module that imports diskcache, which expires rows and, above the size limit, evicts those
used least recently. For that a read also writes the time of use (45 µs), so hits never read here.

Losing a row costs a request to upstream, so an error of the disk is counted, logged and answered
with "unknown", and a damaged file is deleted. The file may come from a backup or another program: a
row with another format is deleted and counted too.
"""

import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import structlog
from diskcache import Cache, JSONDisk, Timeout

from proxy.core.errors import StorageError
from proxy.core.names import Target
from proxy.runtime.executors import Pool, in_thread

MAX_BYTES: Final = 32 * 1024 * 1024
"""Size limit of the file. diskcache evicts ten rows at a time, so more than ten rows must fit."""

MAX_VALUE_BYTES: Final = 3 * 1024 * 1024
"""Size limit of one value as JSON; a larger one is not kept."""

_UNREADABLE: Final = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    zlib.error,
)
"""Errors raised by reading a row that has another format."""

_LRU: Final = "least-recently-used"
_RAW: Final = 1
"""diskcache's mode for a value stored in the row itself."""

_FILE: Final = "cache.db"
_JOURNAL_BYTES: Final = 1024 * 1024
_CACHE_PAGES: Final = 500
_LOCK_SECONDS: Final = 1.0
"""How long a lock held by another program, such as a backup, is waited for."""

Key = tuple[str, ...]
Value = TypeVar("Value")
Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class ExpiringRows:
    """JSON values by key, each with a time to live. An async context manager over one file.

    No method raises: ``on_error`` is called for each failure of the disk and each foreign row.
    """

    def __init__(
        self, directory: Path, *, on_error: Callable[[], None], max_bytes: int = MAX_BYTES
    ) -> None:
        self._directory = directory
        self._on_error = on_error
        self._max_bytes = max_bytes
        self._cache: Cache | None = None
        self._deleted = 0  # foreign rows and damaged files; only the thread changes this
        self._counted = 0  # of these, what on_error knows; only the loop changes this

    async def __aenter__(self) -> Self:
        """Open the file; a failure is tried again at the next access."""
        await self._run(lambda _: None, None)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the file."""
        await in_thread(self._close, Pool.EXPIRING)

    async def get(self, key: Key, parse: Callable[[Any], Value]) -> Value | None:
        """Return ``parse`` of the value under ``key``, None if there is none.

        ``parse`` raises ``ValueError``, ``TypeError`` or ``LookupError`` for a foreign value.
        """
        return await self._run(lambda cache: self._get(cache, key, parse), None)

    async def set(self, key: Key, value: object, ttl: float, target: Target | None = None) -> None:
        """Store a JSON value for ``ttl`` seconds; ``forget`` finds it by ``target``."""
        tag = None if target is None else str(target)
        await self._run(lambda cache: self._set(cache, key, value, expire=ttl, tag=tag), None)

    async def update(
        self,
        key: Key,
        parse: Callable[[Any], Value],
        change: Callable[[Value | None], object],
        *,
        ttl: float,
        target: Target,
    ) -> None:
        """Replace the value under ``key`` by the result of ``change``, in one step.

        ``change`` gets None if there is no value. It returns a JSON value, or None for no change.
        """

        def read_and_write(cache: Cache) -> None:
            value = change(self._get(cache, key, parse))
            if value is not None:
                self._set(cache, key, value, expire=ttl, tag=str(target))

        await self._run(read_and_write, None)

    async def delete(self, key: Key) -> None:
        """Delete one row, if there is one."""
        await self._run(lambda cache: cache.delete(key), None)

    async def forget(self, target: Target) -> None:
        """Delete all rows about a repository."""
        await self._run(lambda cache: cache.evict(str(target)), None)

    def _get(self, cache: Cache, key: Key, parse: Callable[[Any], Value]) -> Value | None:
        try:
            value = self._read(cache, key)
            return None if value is None else parse(value)
        except _UNREADABLE as error:
            self._deleted += 1
            log.warning("unreadable row deleted", key=key, error=repr(error))
            cache.delete(key)
            return None

    def _read(self, cache: Cache, key: Key) -> Any:
        """Return a value; where the disk is full or the file locked, without noting its use."""
        try:
            return cache.get(key)
        except (sqlite3.OperationalError, Timeout):
            cache.reset("eviction_policy", "none", update=False)
            try:
                return cache.get(key)
            finally:
                cache.reset("eviction_policy", _LRU, update=False)

    def _set(self, cache: Cache, key: Key, value: object, **kept: Any) -> None:
        try:
            cache.set(key, value, **kept)
        except ValueError:  # it is too large
            cache.delete(key)
        # A write deletes ten rows at most by itself: too few when a large row replaces small ones.
        if cache.volume() > self._max_bytes:
            cache.cull()

    async def _run(self, work: Callable[[Cache], Result], otherwise: Result) -> Result:
        """Return what ``work`` returns in the thread of this file, ``otherwise`` if it fails."""
        try:
            return await in_thread(lambda: self._mended(work), Pool.EXPIRING)
        except Exception as error:
            self._on_error()
            log.warning("expiring rows: error, continued without", error=repr(error))
            return otherwise
        finally:
            while self._counted < self._deleted:
                self._counted += 1
                self._on_error()

    def _mended(self, work: Callable[[Cache], Result]) -> Result:
        """Do the work; if the file turns out to be damaged, begin a new one and do it again."""
        try:
            return work(self._opened())
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not self._is_foreign(error):
                raise  # the disk is full, fails, or is read-only
            self._deleted += 1
            log.error("damaged file deleted", path=str(self._directory), error=str(error))
        self._close()
        shutil.rmtree(self._directory, ignore_errors=True)
        return work(self._opened())

    def _is_foreign(self, error: sqlite3.OperationalError) -> bool:
        """Return True if SQLite can open the file, and its tables are not diskcache's."""
        return self._cache is None and error.sqlite_errorcode == sqlite3.SQLITE_ERROR

    def _opened(self) -> Cache:
        if self._cache is not None:
            return self._cache
        if os.path.expandvars(self._directory) != str(self._directory):  # diskcache expands it
            raise StorageError(f"{self._directory}: the path may not hold $NAME of a variable")
        _make_private(self._directory)
        with closing(sqlite3.connect(self._directory / _FILE)) as connection, connection:
            # diskcache sets any name it finds there as its attribute.
            connection.execute("DROP TABLE IF EXISTS Settings")
        self._cache = Cache(
            str(self._directory),
            timeout=_LOCK_SECONDS,
            disk=_InRowsOnly,
            eviction_policy=_LRU,
            size_limit=self._max_bytes,
            tag_index=True,
            sqlite_cache_size=_CACHE_PAGES,
            sqlite_mmap_size=0,
            sqlite_trusted_schema=0,
            sqlite_journal_size_limit=_JOURNAL_BYTES,
        )
        return self._cache

    def _close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None


class _InRowsOnly(JSONDisk):  # type: ignore[misc]
    """Stores keys and values as JSON in the row itself, and reads nothing else.

    Of diskcache's other modes one unpickles, which runs code (CVE-2025-69872), and the others name
    a file to read.
    """

    def store(self, value: object, read: object, key: object = None) -> tuple[Any, ...]:
        text = json.dumps(value).encode()
        if len(text) > MAX_VALUE_BYTES:
            raise ValueError("the value is too large")
        return 0, _RAW, None, zlib.compress(text, self.compress_level)

    def fetch(self, mode: int, filename: str | None, value: Any, read: object) -> Any:
        if mode != _RAW or filename is not None or not isinstance(value, bytes):
            raise ValueError("the value is not JSON")
        decompressor = zlib.decompressobj()
        text = decompressor.decompress(value, MAX_VALUE_BYTES)
        if not decompressor.eof:
            raise ValueError("the value is cut off, or too large")
        return json.loads(text)

    def remove(self, file_path: str) -> None:
        """Remove nothing: no row of this program has a file."""


def _make_private(directory: Path) -> None:
    """Make the directory and an empty file that only this user can read. Raises ``OSError``.

    SQLite gives its journals the mode of the file.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(directory / _FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    with suppress(PermissionError):  # they belong to another user, who let us in
        directory.chmod(0o700)
        for path in directory.iterdir():
            path.chmod(0o600)
