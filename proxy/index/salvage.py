"""Copies what can be read of a damaged file of the index into a new one, row by row. Blocks."""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Final

from proxy.index import values
from proxy.index.values import Row, Unreadable

TABLES: Final[dict[str, tuple[str, str, Callable[[Row], object]]]] = {
    "repo": ("id, upstream, name", "id", lambda row: values.target(*row[1:])),
    "blob": (
        "id, digest, size, media_type, used_at, is_public, lists",
        "id",
        lambda row: (values.blob(row[1:6]), row[6] is None or values.size(row[6])),
    ),
    "loose": ("digest", "digest", lambda row: values.digest(row[0])),
    "child": (
        "parent, position, digest, size",
        "parent, position",
        lambda row: values.child(row[2:]),
    ),
    "link": (
        "digest, repo, linked_at",
        "digest, repo",
        lambda row: (values.digest(row[0]), values.seconds(row[2])),
    ),
    "tag": (
        "repo, name, media_type, digest, size, checked_at",
        "repo, name",
        lambda row: (values.tag(row[1]), values.tag_record(row[2:])),
    ),
    "sighting": (
        "id, repo, tag, digest, first_seen, last_seen",
        "id",
        lambda row: (values.tag(row[2]), values.sighting(row[3:])),
    ),
    "referrer": (
        "id, repo, subject, digest, entry",
        "id",
        lambda row: (values.digest(row[2]), values.digest(row[3]), values.entry(row[4])),
    ),
    "pin": ("id, name", "id", lambda row: values.text(row[1])),
    "note": ("name, value", "name", lambda row: (values.text(row[0]), values.json_text(row[1]))),
}
"""For each table its columns, the order of its rows, and what raises for a row that is not ours."""

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
    dropped = 0

    def readable(table: str) -> Iterator[Row]:
        nonlocal dropped
        columns, order, check = TABLES[table]
        for row in rows(old, table, columns, order):
            try:
                check(row)
            except Unreadable:
                dropped += 1
            else:
                yield row

    for table in tables:
        columns = TABLES[table][0]
        marks = ", ".join("?" for _ in columns.split(","))
        insert = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
        new.executemany(insert, readable(table))
    for statement in filter(str.strip, _MEND.split(";")):
        new.execute(statement)
    return dropped


def rows(old: sqlite3.Connection, table: str, columns: str, order: str) -> Iterator[Row]:
    """Yield rows from the front up to a damage, then from the back down to it."""
    backwards = ", ".join(f"{column} DESC" for column in order.split(", "))
    for sorting in (order, backwards):
        try:
            yield from old.execute(f"SELECT {columns} FROM {table} NOT INDEXED ORDER BY {sorting}")
        except sqlite3.Error:
            continue
        else:
            break
