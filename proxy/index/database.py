"""The SQLite file of the index: its schema, how it is opened, and how a damaged one is replaced.

Durability: the journal is a write-ahead log with ``synchronous=NORMAL``. A committed row survives
the end of the process. A power cut never damages the file, but may lose the transactions of the
last moments; one that is committed with ``is_durable`` is written through to the disk, with all
before it (https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous).

Another program may have written the file. A schema that differs from ours is treated as damage, so
no foreign trigger or view is ever run. Everything here blocks.
"""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import structlog

from proxy.core.errors import ConfigError, StorageError
from proxy.core.records import Usage
from proxy.index import blob_rows, layout2, salvage
from proxy.index.values import Unreadable

FILE: Final = "index.db"
VERSION: Final = 1
"""Kept in the file as ``user_version``."""

SCHEMA: Final = """
CREATE TABLE repo (id INTEGER PRIMARY KEY, upstream TEXT NOT NULL, name TEXT NOT NULL,
  UNIQUE (upstream, name));
CREATE TABLE blob (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
  media_type TEXT, used_at REAL NOT NULL, is_public INTEGER NOT NULL, lists INTEGER);
CREATE INDEX blob_used ON blob (used_at, id, size);
CREATE INDEX blob_manifest ON blob (digest) WHERE lists IS NOT 0;
CREATE TABLE loose (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE child (parent INTEGER NOT NULL, position INTEGER NOT NULL, digest BLOB NOT NULL,
  size INTEGER NOT NULL, PRIMARY KEY (parent, position)) WITHOUT ROWID;
CREATE INDEX child_digest ON child (digest);
CREATE TABLE link (digest BLOB NOT NULL, repo INTEGER NOT NULL, linked_at REAL NOT NULL,
  PRIMARY KEY (digest, repo)) WITHOUT ROWID;
CREATE TABLE tag (repo INTEGER NOT NULL, name TEXT NOT NULL, media_type TEXT NOT NULL,
  digest BLOB NOT NULL, size INTEGER NOT NULL, checked_at REAL NOT NULL,
  PRIMARY KEY (repo, name)) WITHOUT ROWID;
CREATE INDEX tag_digest ON tag (digest);
CREATE TABLE sighting (id INTEGER PRIMARY KEY, repo INTEGER NOT NULL, tag TEXT NOT NULL,
  digest BLOB NOT NULL, first_seen REAL NOT NULL, last_seen REAL NOT NULL);
CREATE INDEX sighting_tag ON sighting (repo, tag);
CREATE TABLE referrer (id INTEGER PRIMARY KEY, repo INTEGER NOT NULL, subject BLOB NOT NULL,
  digest BLOB NOT NULL, entry TEXT NOT NULL, UNIQUE (repo, subject, digest));
CREATE TABLE note (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
"""``blob.lists`` is how much a manifest lists, and NULL if that is unknown. ``child`` has rows for
held manifests only; their content may be held or not. ``loose`` names files that may be there
without a row in ``blob``: those that are about to get one, and those about to be deleted."""

_CACHE_KIB: Final = 8192
_JOURNAL_PAGES: Final = 1000
_JOURNAL_SHARE: Final = 16
"""Rows are found by digest, so each is on a different page. In a large file the journal takes
more of them before it is written back: pages that change again are written once."""

_PAGE: Final = 4096
_BUSY_SECONDS: Final = 10.0
_DISK_FAILS: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class Database:
    """The file, with the one connection that writes. ``generation`` grows when it is replaced.

    ``usage`` is how much was held when the file was opened.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / FILE
        self._instead: Path | None = None
        self._connection: sqlite3.Connection | None = None
        self.usage = Usage(0, 0)
        self.generation = 0
        self.damaged: str | None = None
        self.dropped = 0

    def open(self) -> None:
        """Open the file, and create it if needed; convert a layout-2 index.

        If the disk fails, the file is in a temporary directory until ``close``; ``is_temporary``
        says so. Raises ``ConfigError``, ``StorageError``.
        """
        try:
            self._open()
        except StorageError as error:
            self._instead = Path(tempfile.mkdtemp(prefix="millpond-index-"))
            log.error("index cannot be opened", error=str(error), instead=str(self._instead))
            self._directory, self._path = self._instead, self._instead / FILE
            try:
                self._open()
            except (StorageError, ConfigError):
                shutil.rmtree(self._instead, ignore_errors=True)
                raise

    @property
    def file(self) -> Path:
        """Where the file is."""
        return self._path

    @property
    def is_temporary(self) -> bool:
        """The file is removed when it is closed."""
        return self._instead is not None

    def close(self) -> None:
        """Close the file."""
        self._disconnect()
        if self._instead is not None:
            shutil.rmtree(self._instead, ignore_errors=True)

    def reader(self) -> sqlite3.Connection:
        """Return a new connection that cannot write."""
        return reader(self._path)

    def transact(
        self, steps: Sequence[Callable[[sqlite3.Connection], Result]], *, is_durable: bool = False
    ) -> list[Result]:
        """Return what each step returns; all of them are one transaction."""
        writer = self._writer
        if is_durable:
            writer.execute("PRAGMA synchronous = FULL")
        try:
            writer.execute("BEGIN IMMEDIATE")
            try:
                found = [step(writer) for step in steps]
                writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    writer.execute("ROLLBACK")
                raise
        finally:
            if is_durable:
                writer.execute("PRAGMA synchronous = NORMAL")
        return found

    def trim(self) -> None:
        """Return some space of deleted rows to the file system, if there is much of it."""
        (pages,) = self._writer.execute("PRAGMA page_count").fetchone()
        (free,) = self._writer.execute("PRAGMA freelist_count").fetchone()
        if free > max(_JOURNAL_PAGES, pages // 4):
            self._vacuum(_JOURNAL_PAGES)

    def shrink(self) -> None:
        """Return the space of deleted rows and of the journal to the file system."""
        self._vacuum(0)
        self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _vacuum(self, pages: int) -> None:
        """Cut unused pages off the file, all of them for 0."""
        # The statement has a row without columns for each page; ``execute`` ends it at the first.
        self._writer.executescript(f"PRAGMA incremental_vacuum({pages})")

    def file_bytes(self) -> int:
        """Return the bytes of the file and its journal."""
        found = 0
        for path in self._directory.glob(f"{FILE}*"):
            with suppress(FileNotFoundError):  # a journal may be removed at any time
                found += 0 if ".damaged-" in path.name else path.stat().st_size
        return found

    def rebuild(self, generation: int, error: Exception) -> None:
        """Set the damaged file aside; create a new one with all readable rows.

        Does nothing if the file is not that of ``generation`` any more.
        """
        if generation != self.generation:
            return
        aside = self._path.with_name(f"{FILE}.damaged-{time.time_ns()}")
        new = self._built(self._copy)
        self._disconnect()
        journal = Path(f"{self._path}-wal")  # SQLite would read it as the journal of the new file
        with suppress(FileNotFoundError):
            journal.rename(f"{aside}-wal")
        Path(f"{self._path}-shm").unlink(missing_ok=True)
        with suppress(OSError):  # a file system without hard links keeps no copy
            os.link(self._path, aside)
        self._put_in_place(new)
        self.generation += 1
        self.damaged = str(aside)
        self._connection = self._connected()
        log.error("index damaged, rebuilt", error=repr(error), kept_as=str(aside))

    def _open(self) -> None:
        if os.path.expandvars(self._directory) != str(self._directory):  # diskcache expands it
            raise self._refusal("the path may not hold $NAME of a variable")
        try:
            self._prepare()
            if not self._path.exists():
                self._put_in_place(self._built(lambda new: layout2.copy(self._directory, new)))
            try:
                self._connection = self._connected()
            except (sqlite3.DatabaseError, Unreadable) as error:
                if not is_damage(error):
                    raise
                self.rebuild(self.generation, error)
            layout2.remove(self._directory)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise self._refusal(error.strerror) from None
        except OSError as error:
            raise StorageError(f"opening {self._path}: {error}") from error
        except sqlite3.Error as error:
            if _code(error) in _DISK_FAILS and self._directory.is_dir():
                raise StorageError(f"opening {self._path}: {error}") from error
            raise self._refusal(error) from None

    @property
    def _writer(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("the index is not open")
        return self._connection

    @property
    def _new(self) -> Path:
        return self._path.with_name(f"{FILE}.new")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _refusal(self, reason: object) -> ConfigError:
        return ConfigError(f"storage.path: {self._directory} cannot be opened: {reason}")

    def _prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._new.unlink(missing_ok=True)
        modes = {path: 0o600 for path in self._directory.iterdir() if path.is_file()}
        for path, mode in {self._directory: 0o700, **modes}.items():
            try:
                if path.stat().st_mode & 0o777 != mode:
                    path.chmod(mode)
            except PermissionError as error:
                log.warning("others may read the index", path=str(path), error=str(error))

    def _connected(self) -> sqlite3.Connection:
        """Return a connection that writes. Raises ``DatabaseError``, ``Unreadable`` for damage."""
        connection = _connect(self._path)
        try:
            self._check_schema(connection)
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            journal = max(_JOURNAL_PAGES, pages // _JOURNAL_SHARE)
            connection.execute(f"PRAGMA wal_autocheckpoint = {journal}").fetchone()
            connection.execute(f"PRAGMA journal_size_limit = {journal * _PAGE}").fetchone()
            self.usage = blob_rows.usage(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise self._refusal("a newer version of Millpond has written it")
        if _schema(connection) != _OURS:
            raise Unreadable("its schema is not ours")

    def _built(self, fill: Callable[[sqlite3.Connection], None]) -> Path:
        """Return a new file, complete and on the disk."""
        new = self._new
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with closing(_connect(new)) as connection:
            connection.execute("PRAGMA journal_mode = OFF").fetchone()
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.executescript(SCHEMA)
            connection.execute("BEGIN")
            fill(connection)
            connection.execute("COMMIT")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        _sync(new)
        return new

    def _put_in_place(self, new: Path) -> None:
        new.replace(self._path)
        _sync(self._directory)

    def _copy(self, new: sqlite3.Connection) -> None:
        """Copy the readable rows of the tables with the right schema."""
        with closing(_connect(self._path)) as old:
            try:
                old.execute("PRAGMA writable_schema = ON")  # a file that is cut off opens with it
                known = _schema(old) & _OURS
            except sqlite3.DatabaseError:
                return
            tables = {name for name, sql in known if sql.startswith(f"CREATE TABLE {name} ")}
            self.dropped += salvage.copy(old, new, tables)


def is_damage(error: Exception) -> bool:
    """Return True if the file is damaged, or has values that this program has not written."""
    return isinstance(error, Unreadable) or _code(error) in _DAMAGE


def reader(path: Path) -> sqlite3.Connection:
    """Return a new connection that cannot write, to the file of this or another process."""
    connection = _connect(path)
    connection.execute("PRAGMA query_only = 1")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    name = quote(str(path.absolute()))  # RFC 3986: it may hold "#", "?" or "%"
    connection = sqlite3.connect(
        f"file:{name}?mode=rw",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = _text
    connection.execute("PRAGMA trusted_schema = 0")
    return connection


def _text(data: bytes) -> str:
    """Return the text of a column; what is not UTF-8 fails the checks of the value."""
    return data.decode(errors="replace")


def _schema(connection: sqlite3.Connection) -> set[Any]:
    query = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite^_%' ESCAPE '^'"
    return set(connection.execute(query))


def _our_schema() -> set[Any]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        return _schema(connection)


_OURS: Final = _our_schema()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
