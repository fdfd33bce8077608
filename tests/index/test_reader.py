"""Facts that another process reads from the index are never older than the writer's."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.names import Digest, Repo, Tag, Target
from proxy.core.records import BlobRecord, Descriptor, TagRecord
from proxy.index.generations import EVERYTHING, Generations, place
from proxy.index.reader import IndexReader
from proxy.index.sqlite import SqliteIndex

TARGET = Target("docker.io", Repo("library/app"))
OTHER = Target("docker.io", Repo("library/other"))
TAG = Tag("latest")
ONE, TWO = (Digest("sha256:" + digit * 64) for digit in "12")


def pointing(digest: Digest) -> TagRecord:
    return TagRecord(Descriptor("application/vnd.oci.image.manifest.v1+json", digest, 7), 1.0)


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SqliteIndex]:
    index = SqliteIndex(tmp_path, clock=lambda: 1.0, on_error=lambda: None)
    index.generations = Generations()
    async with index:
        await index.set_blob(BlobRecord(ONE, 7, None, 1.0, is_public=False))
        await index.link(TARGET, [ONE])
        await index.set_tag(TARGET, TAG, pointing(ONE))
        yield index
    index.generations.close()


@pytest.fixture
async def reader(index: SqliteIndex) -> AsyncIterator[IndexReader]:
    assert index.generations is not None
    reader = IndexReader(index.file, index.generations)
    yield reader
    await reader.close()


async def test_it_reads_once_and_then_answers_from_memory(reader: IndexReader) -> None:
    assert reader.peek_tag(TARGET, TAG) is None
    assert await reader.tag(TARGET, TAG) == pointing(ONE)
    assert reader.peek_tag(TARGET, TAG) == pointing(ONE)
    held = reader.peek_held(TARGET, ONE)  # what is asked next was read too
    assert held is not None
    assert held.size == 7
    assert await reader.held(OTHER, ONE) is None
    assert await reader.held(TARGET, TWO) is None


async def test_a_moved_tag_is_unknown_until_it_is_written_and_then_the_new_one(
    index: SqliteIndex, reader: IndexReader
) -> None:
    await reader.tag(TARGET, TAG)
    moving = asyncio.create_task(index.set_tag(TARGET, TAG, pointing(TWO)))
    while index.peek_tag(TARGET, TAG) != pointing(TWO):  # from here on the writer knows
        await asyncio.sleep(0)
    assert reader.peek_tag(TARGET, TAG) is None
    await moving
    assert reader.peek_tag(TARGET, TAG) is None
    assert await reader.tag(TARGET, TAG) == pointing(TWO)


async def test_dropped_content_and_removed_links_are_unknown_at_once(
    index: SqliteIndex, reader: IndexReader
) -> None:
    assert await reader.held(TARGET, ONE) is not None
    dropping = asyncio.create_task(index.drop_blobs([ONE]))
    while index.peek_blob(ONE) is not None:
        await asyncio.sleep(0)
    assert reader.peek_held(TARGET, ONE) is None
    await dropping
    assert await reader.held(TARGET, ONE) is None
    await index.set_blob(BlobRecord(ONE, 7, None, 1.0, is_public=False))
    assert await reader.held(TARGET, ONE) is not None
    await index.unlink(TARGET, [ONE])
    assert await reader.held(TARGET, ONE) is None


async def test_what_could_not_be_written_stays_unknown_until_it_is(
    index: SqliteIndex, reader: IndexReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reader.tag(TARGET, TAG)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("proxy.index.name_rows.set_tag", full)
        await index.set_tag(TARGET, TAG, pointing(TWO))
    assert index.failure is not None
    assert await reader.tag(TARGET, TAG) is None  # the file still has the old one
    await index.set_tag(TARGET, TAG, pointing(TWO))
    assert await reader.tag(TARGET, TAG) == pointing(TWO)


async def test_pruning_makes_everything_unknown_to_readers(
    index: SqliteIndex, reader: IndexReader
) -> None:
    await index.link(OTHER, [TWO])
    await reader.tag(TARGET, TAG)
    await index.prune(10.0)
    assert reader.peek_tag(TARGET, TAG) is None
    assert await reader.tag(TARGET, TAG) == pointing(ONE)


async def test_a_replaced_file_is_opened_anew(index: SqliteIndex, reader: IndexReader) -> None:
    await reader.tag(TARGET, TAG)
    before = index.file.stat().st_ino
    index._database.rebuild(index._database.generation, sqlite3.DatabaseError("damaged"))
    await index.link(TARGET, [TWO])  # the index notices
    assert index.file.stat().st_ino != before
    await index.set_tag(TARGET, TAG, pointing(TWO))
    assert await reader.tag(TARGET, TAG) == pointing(TWO)


def test_places_are_the_same_in_every_process_and_marks_are_counted() -> None:
    table = Generations()
    other = Generations(table.fd)
    key = ("tag", TARGET, TAG)
    number = place(key)
    assert number == place(("tag", Target("docker.io", Repo("library/app")), Tag("latest")))
    first = other.stamp(number)
    table.mark(key)
    table.mark(key)
    table.unmark(key)
    assert other.stamp(number) is None
    table.unmark(key)
    assert other.stamp(number) not in (None, first)
    table.mark(EVERYTHING)
    assert other.stamp(number) is None
    table.unmark(EVERYTHING)
    settings = other.settings
    assert table.change_settings() == other.settings == settings + 1
    other._numbers.release()
    other._memory.close()
    table.close()
