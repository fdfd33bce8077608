"""Copies the readable rows of a damaged index file into a new one, row by row. Blocks."""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Final

from proxy.index import values
from proxy.index.values import Row, Unreadable

_CHECKS: Final[dict[str, Callable[[Any], object]]] = {
    "digest": values.digest,
    "subject": values.digest,
    "size": values.size,
    "lists": lambda value: value is None or values.size(value),
    "media_type": lambda value: value is None or values.media_type(value),
    "used_at": values.seconds,
    "linked_at": values.seconds,
    "checked_at": values.seconds,
    "first_seen": values.seconds,
    "last_seen": values.seconds,
    "upstream": values.text,
    "repo.name": lambda value: values.target("", value),
    "tag.name": values.tag,
    "note.name": values.text,
    "tag": values.tag,
    "entry": values.entry,
    "value": values.json_text,
}
"""For a column, or one of a table, what raises ``Unreadable`` for a value that is not ours."""

_MEND: Final = """
DELETE FROM child WHERE parent NOT IN (SELECT id FROM blob);
DELETE FROM link WHERE repo NOT IN (SELECT id FROM repo);
DELETE FROM tag WHERE repo NOT IN (SELECT id FROM repo);
DELETE FROM sighting WHERE repo NOT IN (SELECT id FROM repo);
DELETE FROM referrer WHERE repo NOT IN (SELECT id FROM repo);
DELETE FROM note WHERE name = 'reconciled';
UPDATE blob SET lists = NULL
  WHERE lists IS NOT 0 AND lists <> (SELECT count(*) FROM child WHERE parent = blob.id);
"""


def copy(old: sqlite3.Connection, new: sqlite3.Connection, tables: set[str]) -> int:
    """Copy the rows of some tables; return how many were left out.

    Raises ``sqlite3.Error`` if the new file fails.
    """
    dropped = sum(_copy_table(old, new, table) for table in tables)
    for statement in filter(str.strip, _MEND.split(";")):
        new.execute(statement)
    return dropped


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> int:
    described = new.execute(f"PRAGMA table_info({table})").fetchall()
    columns = [column[1] for column in described]
    keys = [column[1] for column in described if column[5]]
    checks = [_CHECKS.get(f"{table}.{one}", _CHECKS.get(one)) for one in columns]
    dropped = 0

    def readable() -> Iterator[Row]:
        nonlocal dropped
        for row in rows(old, table, columns, keys):
            try:
                for check, value in zip(checks, row, strict=True):
                    if check is not None:
                        check(value)
            except Unreadable:
                dropped += 1
            else:
                yield row

    marks = ", ".join("?" * len(columns))
    insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
    new.executemany(insert, readable())
    return dropped


def rows(old: sqlite3.Connection, table: str, columns: list[str], keys: list[str]) -> Iterator[Row]:
    """Yield rows from the start up to the damage, then from the end back to it."""
    for order in (keys, [f"{key} DESC" for key in keys]):
        query = f"SELECT {', '.join(columns)} FROM {table} NOT INDEXED ORDER BY {', '.join(order)}"
        try:
            yield from old.execute(query)
        except sqlite3.Error:
            continue
        else:
            break
