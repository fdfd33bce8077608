"""What every index must do; each backend is put through it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy.errors import ConfigError
from proxy.index.local import LocalIndex
from proxy.index.tables import HISTORY_LIMIT
from proxy.names import Digest, Repo, Tag, Target, sha256
from proxy.records import BlobRecord, Descriptor, ReferrersRecord, TagRecord, Usage
from tests.fakes.clock import Clock

NGINX = Target("docker.io", Repo("library/nginx"))
OTHER = Target("ghcr.io", Repo("org/other"))
LATEST = Tag("latest")


def digest(number: int) -> Digest:
    return sha256(str(number).encode())


def record(number: int, at: float) -> TagRecord:
    return TagRecord(Descriptor("application/x", digest(number), number), at)


class Reopening:
    """An index that can be closed and opened again on the same files."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._stack = AsyncExitStack()
        self.troubles = 0

    def _trouble(self) -> None:
        self.troubles += 1

    async def open(self) -> LocalIndex:
        await self.close()
        index = LocalIndex(self._path, clock=self._clock, on_trouble=self._trouble)
        return await self._stack.enter_async_context(index)

    async def close(self) -> None:
        await self._stack.aclose()
        assert not self.troubles


@pytest.fixture
async def files(tmp_path: Path, clock: Clock) -> AsyncIterator[Reopening]:
    reopening = Reopening(tmp_path / "index", clock)
    yield reopening
    await reopening.close()


async def test_a_tag_is_remembered_over_a_restart(files: Reopening) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, record(1, 100.0))
    assert await index.tag(NGINX, LATEST) == record(1, 100.0)
    assert await index.tag(OTHER, LATEST) is None
    index = await files.open()
    assert await index.tag(NGINX, LATEST) == record(1, 100.0)
    await index.ready()
    assert await index.tag(NGINX, LATEST) == record(1, 100.0)
    assert await index.tags(NGINX) == [LATEST]


async def test_tags_are_sorted_and_per_repository(files: Reopening) -> None:
    index = await files.open()
    for tag in ("b", "a", "B"):
        await index.set_tag(NGINX, Tag(tag), record(1, 1.0))
    await index.set_tag(OTHER, Tag("c"), record(1, 1.0))
    assert await index.tags(NGINX) == ["B", "a", "b"]


async def test_history_keeps_every_digest_with_first_and_last_sight(files: Reopening) -> None:
    index = await files.open()
    for number, at in ((1, 10.0), (1, 20.0), (2, 30.0), (1, 40.0)):
        await index.set_tag(NGINX, LATEST, record(number, at))
    await index.drop_tag(NGINX, LATEST)
    index = await files.open()
    assert await index.tag(NGINX, LATEST) is None
    assert await index.tags(NGINX) == []
    seen = [
        (sighting.digest, sighting.first_seen, sighting.last_seen)
        for sighting in await index.history(NGINX, LATEST)
    ]
    assert seen == [(digest(1), 10.0, 20.0), (digest(2), 30.0, 30.0), (digest(1), 40.0, 40.0)]


async def test_history_is_bounded_and_keeps_the_latest(files: Reopening) -> None:
    index = await files.open()
    for number in range(HISTORY_LIMIT + 5):
        await index.set_tag(NGINX, LATEST, record(number, float(number)))
    history = await index.history(NGINX, LATEST)
    assert len(history) == HISTORY_LIMIT
    assert history[-1].digest == digest(HISTORY_LIMIT + 4)


async def test_links_belong_to_one_repository(files: Reopening) -> None:
    index = await files.open()
    await index.link(NGINX, [digest(1), digest(2)])
    await index.link(OTHER, [digest(2)])
    for reopened in (False, True):
        index = await files.open() if reopened else index
        assert await index.linked(NGINX, digest(1))
        assert not await index.linked(OTHER, digest(1))
        assert await index.linked(NGINX, digest(2))
        assert await index.linked(OTHER, digest(2))
        assert not await index.linked(NGINX, digest(3))


async def test_dropped_content_is_gone_and_who_holds_it_upstream_stays_known(
    files: Reopening,
) -> None:
    index = await files.open()
    await index.set_blob(BlobRecord(digest(1), 5, None, 1.0))
    await index.link(NGINX, [digest(1)])
    await index.drop_blobs([digest(1), digest(9)])
    for reopened in (False, True):
        index = await files.open() if reopened else index
        assert await index.blob(digest(1)) is None
        assert await index.linked(NGINX, digest(1))
        assert not await index.linked(NGINX, digest(9))
    await index.ready()
    assert index.usage() == Usage(0, 0)


async def test_referrers_are_remembered(files: Reopening) -> None:
    index = await files.open()
    assert await index.referrers(NGINX, digest(1)) == ReferrersRecord((), None)
    await index.add_referrer(NGINX, digest(1), {"digest": digest(2), "size": 1})
    await index.add_referrer(NGINX, digest(1), {"digest": digest(2), "size": 1})
    held = ReferrersRecord(({"digest": digest(2), "size": 1},), None)
    assert await index.referrers(NGINX, digest(1)) == held
    assert await index.referrers(OTHER, digest(1)) == ReferrersRecord((), None)
    told = ReferrersRecord(({"digest": digest(3), "size": 1},), 100.0)
    await index.set_referrers(NGINX, digest(1), told)
    index = await files.open()
    both = ReferrersRecord((*told.entries, *held.entries), 100.0)
    assert await index.referrers(NGINX, digest(1)) == both


async def test_one_unreadable_row_costs_itself_only(files: Reopening, tmp_path: Path) -> None:
    index = await files.open()
    for number in range(3):
        await index.set_blob(BlobRecord(digest(number), 5, None, float(number)))
        await index.set_tag(NGINX, Tag(f"v{number}"), record(number, 1.0))
    await files.close()
    for table in ("blobs", "tags"):
        with sqlite3.connect(tmp_path / "index" / table / "cache.db") as connection:
            connection.execute("UPDATE Cache SET value = ? WHERE rowid = 2", (b"\x00rubbish",))
        connection.close()
    index = await files.open()
    async with asyncio.timeout(5):
        await index.ready()
    assert index.usage() == Usage(2, 2 * 4096)
    assert await index.tags(NGINX) == ["v0", "v2"]


async def test_an_index_that_cannot_be_opened_says_so(files: Reopening, tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file")
    with pytest.raises(ConfigError, match=r"storage.path: .*index cannot be opened"):
        await files.open()


async def test_usage_counts_blocks(files: Reopening) -> None:
    index = await files.open()
    await index.set_blob(BlobRecord(digest(1), 1, None, 1.0))
    await index.set_blob(BlobRecord(digest(2), 4097, "application/x", 1.0))
    await index.set_blob(BlobRecord(digest(2), 4097, "application/x", 2.0))
    await index.set_blob(BlobRecord(digest(3), 0, None, 2.0))
    assert index.usage() == Usage(3, 3 * 4096)
    index = await files.open()
    await index.ready()
    assert index.usage() == Usage(3, 3 * 4096)
    assert await index.blob(digest(2)) == BlobRecord(digest(2), 4097, "application/x", 2.0)


async def test_recency_counts_every_use_and_outlives_a_restart(
    files: Reopening, clock: Clock
) -> None:
    index = await files.open()
    for number in range(4):
        await index.set_blob(BlobRecord(digest(number), 1, None, clock()))
        clock.advance(1)
    index.touch(digest(0))
    clock.advance(1)
    index.touch(digest(2))
    index.touch(digest(99))
    await index.settle()
    expected = [digest(1), digest(3), digest(0), digest(2)]
    assert [blob.digest for blob in index.coldest()] == expected
    index = await files.open()
    await index.ready()
    assert [blob.digest for blob in index.coldest()] == expected


async def test_an_unreadable_index_is_set_aside_and_begun_anew(
    files: Reopening, tmp_path: Path
) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, record(1, 100.0))
    await files.close()
    (tmp_path / "index/tags/cache.db").write_bytes(b"not a database at all, surely" * 100)
    index = await files.open()
    await index.ready()
    assert await index.tag(NGINX, LATEST) is None
    await index.set_tag(NGINX, LATEST, record(2, 100.0))
    assert list(tmp_path.glob("index/tags.unreadable-*"))


async def test_no_pickle_is_written(files: Reopening, tmp_path: Path) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, record(1, 100.0))
    await index.link(NGINX, [digest(1)])
    await index.set_blob(BlobRecord(digest(1), 1, None, 1.0))
    await files.close()
    for table in ("tags", "links", "blobs"):
        with sqlite3.connect(tmp_path / "index" / table / "cache.db") as connection:
            modes = connection.execute("SELECT DISTINCT mode FROM Cache").fetchall()
        connection.close()
        assert modes == [(1,)], "diskcache's mode 4 is pickle, 1 is raw bytes"
