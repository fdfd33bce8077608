"""Damage to the files of the index: each table alone, at the head, in the middle, at the end."""

import asyncio
from pathlib import Path

import pytest

from proxy.core.names import Repo, Tag, Target, sha256
from proxy.core.records import BlobRecord, Child, Descriptor, ReferrersRecord, TagRecord
from proxy.index.local import LocalIndex
from proxy.index.table import Table
from tests.fakes.clock import Clock

ROWS = 20_000
TARGET = Target("docker.io", Repo("library/nginx"))
ABOUT = Descriptor("application/x", sha256(b"a manifest"), 10)
TABLES = ("tags", "links", "blobs", "referrers", "notes")
PAGE = 4096


def fill(path: Path) -> None:
    table = Table(path)
    table.set((f"key {number}", [number, "x" * 50]) for number in range(ROWS))
    table.close()


def spoil(file: Path, start: int, length: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(b"\xa5" * length)


def read(table: Table) -> dict[str, int]:
    pairs = table.batches(lambda key, value: (key, value[0]))
    return {key: number for batch in pairs for key, number in batch}


def damaged(path: Path, where: str) -> None:
    file = path / "cache.db"
    size = file.stat().st_size
    match where:
        case "head":
            spoil(file, 0, 100)
        case "first page":
            spoil(file, 0, PAGE)
        case "middle":
            spoil(file, size // 2 // PAGE * PAGE, 2 * PAGE)
        case "end":
            spoil(file, size - 3 * PAGE, 3 * PAGE)
        case "cut":
            with file.open("r+b") as opened:
                opened.truncate(size // 2)
        case "empty":
            file.write_bytes(b"")
    for name in ("cache.db-wal", "cache.db-shm"):
        (path / name).unlink(missing_ok=True)


@pytest.mark.parametrize("where", ["head", "first page", "middle", "end", "cut", "empty"])
def test_a_damaged_table_opens_reads_and_writes(tmp_path: Path, where: str) -> None:
    path = tmp_path / "table"
    fill(path)
    damaged(path, where)
    table = Table(path)
    rows = read(table)
    assert all(key == f"key {number}" for key, number in rows.items())
    table.set([("new", [1])])
    assert table.get("new") == [1]
    table.close()
    again = Table(path)
    assert read(again) == rows | {"new": 1}
    assert not again.was_damaged
    again.close()


@pytest.mark.parametrize("where", ["middle", "end"])
def test_what_lies_before_and_behind_the_damage_is_saved(tmp_path: Path, where: str) -> None:
    path = tmp_path / "table"
    fill(path)
    damaged(path, where)
    table = Table(path)
    rows = read(table)
    assert table.was_damaged
    assert list(tmp_path.glob("table.unreadable-*"))
    assert "key 0" in rows
    assert 0.9 * ROWS < len(rows) <= ROWS
    table.close()


async def test_a_damaged_table_costs_no_other(tmp_path: Path, clock: Clock) -> None:
    for name in TABLES:
        root = tmp_path / name
        async with LocalIndex(root, clock=clock, on_trouble=lambda: None) as index:
            await everything(index)
        damaged(root / name, "first page")
        async with LocalIndex(root, clock=clock, on_trouble=no_trouble) as index:
            async with asyncio.timeout(10):
                await index.ready()
            known = await what_is_known(index)
            assert index.damaged() == [name]
            assert known == {table: table != name for table in TABLES}
            await everything(index)
            assert all((await what_is_known(index)).values())


def no_trouble() -> None:
    raise AssertionError("damage is mended, and no trouble")


async def everything(index: LocalIndex) -> None:
    """Write a row into each table."""
    await index.set_tag(TARGET, Tag("latest"), TagRecord(ABOUT, 1.0))
    await index.link(TARGET, [ABOUT.digest])
    await index.set_blob(BlobRecord(ABOUT.digest, 10, "x/y", 1.0), [Child(sha256(b"layer"), 5)])
    entry = {"digest": sha256(b"signature"), "size": 1}
    await index.set_referrers(TARGET, ABOUT.digest, ReferrersRecord((entry,), 1.0))
    await index.set_note("a note", ["of something"])


async def what_is_known(index: LocalIndex) -> dict[str, bool]:
    return {
        "tags": await index.tag(TARGET, Tag("latest")) == TagRecord(ABOUT, 1.0),
        "links": await index.linked(TARGET, ABOUT.digest),
        "blobs": index.children(ABOUT.digest) == (Child(sha256(b"layer"), 5),),
        "referrers": len((await index.referrers(TARGET, ABOUT.digest)).entries) == 1,
        "notes": await index.note("a note") == ["of something"],
    }


async def test_rows_of_the_first_layout_do_not_tell_what_is_listed(
    tmp_path: Path, clock: Clock
) -> None:
    manifest, layer = sha256(b"manifest"), sha256(b"layer")
    old = Table(tmp_path / "blobs")
    old.set([(manifest, [10, "x/y", 2.0]), (layer, [5, None, 1.0])])
    old.close()
    for _ in range(2):
        async with LocalIndex(tmp_path, clock=clock, on_trouble=lambda: None) as index:
            await index.ready()
            assert index.incomplete() == [manifest]
            assert await index.blob(manifest) is not None
            index.touch(manifest)  # is written at the end, which must not make it known
    held = BlobRecord(manifest, 10, "x/y", clock())
    for is_known in (False, True):
        async with LocalIndex(tmp_path, clock=clock, on_trouble=lambda: None) as index:
            await index.ready()
            if not is_known:
                await index.set_blob(held, [Child(layer, 5)])
            assert index.held(manifest) == held
            assert index.incomplete() == []
            assert index.children(manifest) == (Child(layer, 5),)
