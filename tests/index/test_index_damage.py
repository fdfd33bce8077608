"""Damage to the file of the index: it is set aside, and readable rows are carried over."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.errors import ConfigError
from proxy.core.names import Repo, Tag, Target
from proxy.core.records import Usage
from proxy.index.database import VERSION
from tests.fakes.clock import Clock
from tests.index.indexes import (
    LATEST,
    NGINX,
    OTHER,
    SqliteFiles,
    all_tags,
    blob,
    digest,
    listing,
    manifest,
    order,
    tagged,
)

PAGE = 4096
ROWS = 3000


@pytest.fixture
async def files(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteFiles]:
    found = SqliteFiles(tmp_path / "index", clock)
    yield found
    await found.close()


async def fill(files: SqliteFiles, rows: int = 2) -> None:
    index = await files.open()
    await index.set_note("pins", ["a pin"])
    await index.set_note("a note", 7)
    for number in (1, 2):
        await index.set_blob(manifest(number), listing(9))
        await index.link(NGINX, [digest(number)])
        await index.set_tag(NGINX, Tag(f"v{number}"), tagged(number, 1.0))
        await index.add_referrer(NGINX, digest(number), {"digest": digest(3), "size": 1})
    if rows > 2:
        records = [blob(number, float(number)) for number in range(10, rows)]
        with closing(sqlite3.connect(files.path / "index.db")) as direct, direct:
            direct.executemany(
                "INSERT INTO blob VALUES (NULL, ?, 1, NULL, ?, 0, 0)",
                ((bytes.fromhex(one.digest[7:]), one.used_at) for one in records),
            )
    await files.close()


def spoil(file: Path, where: str) -> None:
    size = file.stat().st_size
    match where:
        case "garbage":
            file.write_bytes(b"not a database at all, surely" * 100)
        case "empty":
            file.write_bytes(b"")
        case "cut":
            with file.open("r+b") as opened:
                opened.truncate(size // 2 // PAGE * PAGE)
        case "odd end":
            with file.open("r+b") as opened:
                opened.truncate(size // 2 + 17)
        case _:
            begin, length = {
                "head": (0, 100),
                "first page": (0, PAGE),
                "middle": (size // 2 // PAGE * PAGE, 2 * PAGE),
                "end": (size - 3 * PAGE, 3 * PAGE),
            }[where]
            with file.open("r+b") as opened:
                opened.seek(begin)
                opened.write(b"\xa5" * length)


@pytest.mark.parametrize(
    "where", ["garbage", "empty", "cut", "odd end", "head", "first page", "middle", "end"]
)
async def test_a_damaged_file_is_set_aside_and_the_index_goes_on(
    files: SqliteFiles, where: str
) -> None:
    await fill(files, ROWS)
    spoil(files.path / "index.db", where)
    index = await files.open()
    held = await order(index, 500)
    torn = {*held} - {digest(number) for number in range(ROWS)}
    assert len(torn) <= (where == "odd end"), "the row that is cut off may keep half of its digest"
    assert len(held) > ROWS // 10 or where not in ("cut", "odd end")
    assert {row[2] for row in await all_tags(index)} <= {digest(1), digest(2)}
    for number in (1, 2):
        assert await index.children(digest(number)) in (listing(9), (), None)
    await index.set_blob(blob(ROWS), ())
    await index.set_tag(OTHER, LATEST, tagged(4, 1.0))
    if index.damaged is not None:
        aside = Path(index.damaged)
        assert aside.parent == files.path
        assert aside.name.startswith("index.db.damaged-")
        assert aside.stat().st_mode & 0o777 == 0o600
    assert index.damaged is not None or where in ("middle", "end")
    index = await files.open()
    assert index.damaged is None
    assert await index.tag(OTHER, LATEST) == tagged(4, 1.0)
    assert set(await order(index, 500)) >= {digest(ROWS)}
    assert index.usage().files == len(await order(index, 500))


@pytest.mark.parametrize("table", ["blob", "child", "link", "tag", "sighting", "referrer", "note"])
async def test_a_damaged_table_costs_no_other(files: SqliteFiles, table: str) -> None:
    await fill(files)
    with closing(sqlite3.connect(files.path / "index.db")) as direct:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = direct.execute(query, (table,)).fetchone()
    with (files.path / "index.db").open("r+b") as opened:
        opened.seek((page - 1) * PAGE)
        opened.write(b"\xa5" * PAGE)
    index = await files.open()
    for _ in range(2):  # what the first question finds, the second knows
        found = {
            "blob": await index.blob(digest(1)) == manifest(1),
            "child": await index.children(digest(1)) == listing(9),
            "link": await index.linked(NGINX, digest(1)),
            "tag": await index.tag(NGINX, Tag("v1")) == tagged(1, 1.0),
            "sighting": len(await index.history(NGINX, Tag("v1"))) == 1,
            "referrer": len(await index.referrers(NGINX, digest(1))) == 1,
            "note": await index.note("a note") == 7,
        }
    lost = {"child", "blob"} if table == "blob" else {table}
    assert {name for name, known in found.items() if not known} == lost
    assert index.damaged is not None
    if table == "child":
        assert await index.children(digest(1)) is None, "it is unknown, and not nothing"
        assert set(await index.incomplete(None, 9)) == {digest(1), digest(2)}


async def test_what_lies_before_and_behind_the_damage_is_saved(files: SqliteFiles) -> None:
    await fill(files, 20_000)
    with closing(sqlite3.connect(files.path / "index.db")) as direct:
        (pages,) = direct.execute("PRAGMA page_count").fetchone()
        leaf = (
            direct.execute(
                "SELECT pageno FROM dbstat WHERE name = 'blob' AND pagetype = 'leaf' LIMIT 1 OFFSET 50"
            ).fetchone()
            if _has_dbstat(direct)
            else (pages // 3,)
        )
    with (files.path / "index.db").open("r+b") as opened:
        opened.seek((leaf[0] - 1) * PAGE)
        opened.write(b"\xa5" * PAGE)
    index = await files.open()
    held = set(await order(index, 2000))
    for number in range(10, 20_000, 100):
        await index.blob(digest(number))
    held = set(await order(index, 2000))
    assert 19_000 < len(held) <= 20_000
    assert {digest(1), digest(19_999)} <= held


def _has_dbstat(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("SELECT 1 FROM dbstat LIMIT 1")
    except sqlite3.OperationalError:
        return False
    return True


# What others wrote

BAD_ROWS = {
    "size out of bounds": "UPDATE blob SET size = (1 << 62) WHERE id = 1",
    "negative size": "UPDATE blob SET size = -1 WHERE id = 1",
    "size of another type": "UPDATE blob SET size = 'many' WHERE id = 1",
    "no time": "UPDATE blob SET used_at = 'now' WHERE id = 1",
    "endless time": "UPDATE blob SET used_at = 9e999 WHERE id = 1",
    "type with a line end": "UPDATE blob SET media_type = 'x/y' || char(13, 10) || 'A: b' WHERE id = 1",
    "type that is not text": "UPDATE blob SET media_type = x'ff00' WHERE id = 1",
    "type that is not UTF-8": "UPDATE blob SET media_type = CAST(x'ff2f61' AS TEXT) WHERE id = 1",
}


@pytest.mark.parametrize("change", BAD_ROWS.values(), ids=list(BAD_ROWS))
async def test_t59_a_row_that_makes_no_sense_costs_itself_only(
    files: SqliteFiles, change: str
) -> None:
    await fill(files)
    with closing(sqlite3.connect(files.path / "index.db")) as direct, direct:
        assert direct.execute(change).rowcount == 1
    index = await files.open()
    assert await index.blob(digest(1)) is None
    assert await index.blob(digest(2)) == manifest(2)
    assert await order(index) == [digest(2)]
    assert await index.tag(NGINX, Tag("v1")) == tagged(1, 1.0)
    assert index.dropped_rows == 1
    assert index.usage() == Usage(1, PAGE)
    index = await files.open()
    assert index.dropped_rows == 0, "it is gone"
    assert index.usage() == Usage(1, PAGE)


OTHER_ROWS = [
    "UPDATE tag SET media_type = 'x/y' || char(13, 10) || 'A: b' WHERE name = 'v1'",
    "UPDATE tag SET digest = x'00' WHERE name = 'v1'",
    "UPDATE tag SET digest = 'text' WHERE name = 'v1'",
    "UPDATE tag SET size = 'x' WHERE name = 'v1'",
    "UPDATE tag SET checked_at = 'x' WHERE name = 'v1'",
    "UPDATE tag SET name = '../../etc' WHERE name = 'v1'",
    "UPDATE sighting SET digest = x'00' WHERE tag = 'v1'",
    "UPDATE sighting SET last_seen = 'x' WHERE tag = 'v1'",
    "UPDATE child SET size = -5 WHERE parent = 1",
    "UPDATE child SET digest = 5 WHERE parent = 1",
    "UPDATE referrer SET entry = '{' WHERE id = 1",
    "UPDATE referrer SET entry = '[]' WHERE id = 1",
    "UPDATE referrer SET entry = '{\"digest\": 5}' WHERE id = 1",
    "UPDATE note SET value = 'x' WHERE name = 'a note'",
]


@pytest.mark.parametrize("change", OTHER_ROWS)
async def test_t59_other_rows_that_make_no_sense_are_left_out(
    files: SqliteFiles, change: str
) -> None:
    await fill(files)
    with closing(sqlite3.connect(files.path / "index.db")) as direct, direct:
        assert direct.execute(change).rowcount == 1
    index = await files.open()
    await index.tag(NGINX, Tag("v1"))
    await index.history(NGINX, Tag("v1"))
    await index.children(digest(1))
    await index.referrers(NGINX, digest(1))
    await index.note("a note")
    await all_tags(index)
    assert index.dropped_rows == 1
    assert await index.tag(NGINX, Tag("v2")) == tagged(2, 1.0)
    assert await index.children(digest(2)) == listing(9)
    await index.set_tag(NGINX, Tag("v1"), tagged(1, 2.0))
    assert await index.tag(NGINX, Tag("v1")) == tagged(1, 2.0), "it is learnt anew"


async def test_t59_a_repository_without_a_name_takes_its_rows_along(files: SqliteFiles) -> None:
    await fill(files)
    index = await files.open()
    await index.set_tag(OTHER, LATEST, tagged(1, 1.0))
    await files.close()
    with closing(sqlite3.connect(files.path / "index.db")) as direct, direct:
        direct.execute("UPDATE repo SET name = '../..' WHERE upstream = 'ghcr.io'")
    index = await files.open()
    assert await index.repositories() == [NGINX]
    assert [row[0] for row in await all_tags(index)] == [NGINX, NGINX]
    await index.set_tag(Target("quay.io", Repo("a/b")), LATEST, tagged(1, 1.0))
    assert len(await all_tags(index)) == 3


FOREIGN_SCHEMAS = {
    "trigger": "CREATE TRIGGER evil AFTER INSERT ON tag BEGIN DELETE FROM blob; END",
    "view": "CREATE VIEW evil AS SELECT * FROM blob",
    "table": "CREATE TABLE evil (x)",
    "missing index": "DROP INDEX tag_digest",
    "missing table": "DROP TABLE note",
    "view in place of a table": "DROP TABLE note; CREATE VIEW note AS "
    "SELECT 'a note' AS name, '7' AS value",
}


@pytest.mark.parametrize("change", FOREIGN_SCHEMAS.values(), ids=list(FOREIGN_SCHEMAS))
async def test_t58_a_schema_that_is_not_ours_never_runs(files: SqliteFiles, change: str) -> None:
    await fill(files)
    with closing(sqlite3.connect(files.path / "index.db")) as direct:
        direct.executescript(change)
    index = await files.open()
    assert index.damaged is not None
    await index.set_tag(NGINX, LATEST, tagged(1, 2.0))
    assert await index.blob(digest(1)) == manifest(1)
    assert await index.tag(NGINX, Tag("v1")) == tagged(1, 1.0)
    assert (await index.note("a note") is None) == ("note" in change)
    index = await files.open()
    assert index.damaged is None


async def test_a_file_of_a_newer_version_refuses_the_start(files: SqliteFiles) -> None:
    await fill(files)
    with closing(sqlite3.connect(files.path / "index.db")) as direct:
        direct.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(ConfigError, match="newer version"):
        await files.open()


async def test_damage_while_it_runs_is_mended(files: SqliteFiles) -> None:
    await fill(files, ROWS)
    index = await files.open()
    await index.set_tag(NGINX, Tag("v3"), tagged(3, 1.0))
    with closing(sqlite3.connect(files.path / "index.db")) as direct, direct:
        direct.execute("UPDATE blob SET size = -1 WHERE id = 2")
    with closing(sqlite3.connect(files.path / "index.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM blob").fetchone()
        assert (files.path / "index.db-wal").stat().st_size, "the journal stays while one reads"
        assert await index.blob(digest(2)) is None
    assert index.damaged is not None
    assert Path(f"{index.damaged}-wal").exists()
    assert await index.blob(digest(2)) is None
    assert await index.blob(digest(10)) == blob(10, 10.0)
    assert await index.tag(NGINX, Tag("v3")) == tagged(3, 1.0)
    await index.set_tag(NGINX, Tag("v4"), tagged(4, 1.0))
    index = await files.open()
    assert await index.tag(NGINX, Tag("v4")) == tagged(4, 1.0)
