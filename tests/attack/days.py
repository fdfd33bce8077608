"""What a bad day leaves in the cache's directory."""

import asyncio
import os
import pickle
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from tests.attack.arena import HONEST, Arena, Scenario

SPOILT: Final = (
    b"\x00\xff not what it was",
    *(zlib.compress(text) for text in (b'"text"', b'{"size": 36893488147419103232}')),
)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def databases(storage: Path) -> Iterator[Path]:
    """Yield the SQLite files of the index, whatever they are called."""
    for path in sorted((storage / "index").rglob("*")):
        if path.is_file() and path.read_bytes()[:15] == b"SQLite format 3":
            yield path


def spoil(storage: Path, value: object) -> int:
    """Put a value into all columns of all rows that take it; return how many values that changed.

    Columns of a key that must be unique take it in one row. diskcache's ``mode`` becomes that of a
    pickle. Its table of settings is left to ``_pickling_disk``.
    """
    changed = 0
    for database in databases(storage):
        with closing(sqlite3.connect(database)) as connection, connection:
            for table, column in _columns(connection):
                new = 4 if column == "mode" else value
                with suppress(sqlite3.IntegrityError):  # a row id takes only integers
                    update = f'UPDATE OR IGNORE "{table}" SET "{column}" = ?'
                    changed += connection.execute(update, (new,)).rowcount
    return changed


def _columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return the tables but diskcache's settings, and their columns."""
    return connection.execute(
        "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c"
        " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' AND t.name != 'Settings'"
    ).fetchall()


async def pickled_rows(arena: Arena) -> None:
    """Rows of an index that somebody restored run code when they are unpickled."""
    marker = arena.millpond.storage.parent / "unpickled"
    row = pickle.dumps(Trap(marker))
    await asyncio.to_thread(arena.millpond.stop)
    arena.check(spoil(arena.millpond.storage, row) > 0, "no row of the index was found")
    for database in databases(arena.millpond.storage):
        _pickling_disk(database)
    await _starts_again(arena)
    arena.check(not marker.exists(), "a row of the index was unpickled and ran code")


def _pickling_disk(database: Path) -> None:
    """Have diskcache's own settings demand pickles: they must never choose how rows are read."""
    with (
        closing(sqlite3.connect(database)) as connection,
        connection,
        suppress(sqlite3.OperationalError),  # this file is not diskcache's
    ):
        connection.execute("UPDATE Settings SET value = 1 WHERE key = 'disk_pickle_protocol'")


async def spoilt_rows(arena: Arena) -> None:
    """Every row of the index is spoilt: it is dropped, and the cache is ready all the same."""
    for spoilt in SPOILT:
        await asyncio.to_thread(arena.millpond.stop)
        arena.check(spoil(arena.millpond.storage, spoilt) > 0, "no row of the index was found")
        await _starts_again(arena)
        await asyncio.sleep(0.2)
    digest = next(iter(arena.honest.blobs))
    got = await arena.ask(f"/v2/{HONEST}/blobs/{digest}")
    arena.check(got.status == 200, f"{got.status} for a blob after rows were spoilt")


async def damaged_files(arena: Arena) -> None:
    """The middle of every index file is overwritten."""
    await asyncio.to_thread(arena.millpond.stop)
    for database in databases(arena.millpond.storage):
        size = database.stat().st_size
        with database.open("r+b") as file:
            file.seek(size // 3)
            file.write(os.urandom(size // 3))
    await _starts_again(arena)


async def _starts_again(arena: Arena) -> None:
    """Start on what lies there; it is ready within the time that a start may take."""
    try:
        await asyncio.to_thread(arena.millpond.start)
    except AssertionError as error:
        arena.check(None, f"does not start: {str(error).splitlines()[0][:200]}")
        raise TimeoutError from None


SCENARIOS: Final = (
    Scenario("pickled rows", pickled_rows, "rows that run code when unpickled", restarts=True),
    Scenario("spoilt rows", spoilt_rows, "rows that cannot be read", within=60, restarts=True),
    Scenario("damaged files", damaged_files, "index files overwritten in part", restarts=True),
)
