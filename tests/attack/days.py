"""What a bad day leaves in the cache's directory."""

import asyncio
import os
import pickle
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
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


def spoil(database: Path, table: str, column: str, value: object) -> None:
    """Put a value into one column of every row."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(f'UPDATE "{table}" SET "{column}" = ?', (value,))


def tables(database: Path) -> dict[str, list[str]]:
    """Return the columns of each table."""
    with closing(sqlite3.connect(database)) as connection:
        names = [
            row[0]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not row[0].startswith("sqlite_")
        ]
        return {
            name: [row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')]
            for name in names
        }


async def pickled_rows(arena: Arena) -> None:
    """Rows of an index that somebody restored run code when they are unpickled."""
    marker = arena.millpond.storage.parent / "unpickled"
    row = pickle.dumps(Trap(marker))
    await asyncio.to_thread(arena.millpond.stop)
    for database in databases(arena.millpond.storage):
        for table, columns in tables(database).items():
            if {"mode", "value"} <= set(columns):
                spoil(database, table, "mode", 4)
                spoil(database, table, "value", row)
            if table == "Settings":
                _pickling_disk(database, table)
    await _starts_again(arena)
    arena.check(not marker.exists(), "a row of the index was unpickled and ran code")


def _pickling_disk(database: Path, table: str) -> None:
    """Let diskcache's own settings ask for nothing; they must never choose how rows are read."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(f"UPDATE \"{table}\" SET value = 1 WHERE key = 'disk_pickle_protocol'")


async def spoilt_rows(arena: Arena) -> None:
    """Every row of the index is spoilt: it is dropped, and the cache is ready all the same."""
    for spoilt in SPOILT:
        await asyncio.to_thread(arena.millpond.stop)
        for database in databases(arena.millpond.storage):
            for table, columns in tables(database).items():
                if table != "Settings" and "value" in columns:
                    spoil(database, table, "value", spoilt)
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
