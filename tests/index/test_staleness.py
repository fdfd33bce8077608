"""While an index reads its rows, what is learnt or dropped meanwhile is newer than any row."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.names import Repo, Tag, Target
from proxy.core.records import BlobRecord
from tests.fakes.clock import Clock
from tests.index.backends import BACKENDS, LATEST, NGINX, Reopening, digest, record

ROWS = 3000


@pytest.fixture(params=BACKENDS)
async def files(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[Reopening]:
    """Files with enough rows that reading them takes several steps."""
    reopening = Reopening(BACKENDS[request.param], tmp_path / "index", clock)
    index = await reopening.open()
    async with asyncio.TaskGroup() as group:
        for number in range(ROWS):
            group.create_task(index.set_blob(BlobRecord(digest(number), 5, None, float(number))))
        group.create_task(index.set_tag(NGINX, LATEST, record(1, 100.0)))
    await reopening.close()
    yield reopening
    await reopening.close()


async def test_no_row_replaces_a_newer_tag(files: Reopening) -> None:
    index = await files.open()
    asked = asyncio.create_task(index.tag(NGINX, LATEST))
    await asyncio.sleep(0)
    await index.set_tag(NGINX, LATEST, record(2, 200.0))
    assert await asked in (record(1, 100.0), record(2, 200.0))
    assert await index.tag(NGINX, LATEST) == record(2, 200.0)
    await index.ready()
    assert await index.tag(NGINX, LATEST) == record(2, 200.0)
    index = await files.open()
    assert await index.tag(NGINX, LATEST) == record(2, 200.0)


async def test_a_tag_that_was_learnt_while_its_row_was_read_is_told(files: Reopening) -> None:
    index = await files.open()
    learning = asyncio.create_task(index.set_tag(NGINX, LATEST, record(2, 200.0)))
    asked = asyncio.create_task(index.tag(NGINX, LATEST))
    assert await asked == record(2, 200.0)
    await learning


async def test_a_dropped_tag_does_not_come_back(files: Reopening) -> None:
    index = await files.open()
    asked = asyncio.create_task(index.tag(NGINX, LATEST))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await index.drop_tag(NGINX, LATEST)
    assert await asked is None, "it was dropped before this was answered"
    assert await index.tag(NGINX, LATEST) is None
    await index.ready()
    assert await index.tag(NGINX, LATEST) is None
    assert await index.tags(NGINX) == []
    assert [seen.digest for seen in await index.history(NGINX, LATEST)] == [digest(1)]
    index = await files.open()
    await index.ready()
    assert await index.tag(NGINX, LATEST) is None


async def test_a_dropped_tag_may_be_learnt_anew(files: Reopening) -> None:
    index = await files.open()
    await index.drop_tag(NGINX, LATEST)
    await index.set_tag(NGINX, LATEST, record(2, 200.0))
    await index.ready()
    assert await index.tag(NGINX, LATEST) == record(2, 200.0)


@pytest.mark.parametrize("number", [0, ROWS // 2, ROWS - 1])
async def test_a_dropped_blob_does_not_reappear(files: Reopening, number: int) -> None:
    index = await files.open()
    asked = asyncio.create_task(index.blob(digest(number)))
    await asyncio.sleep(0)
    await index.drop_blobs([digest(number)])
    assert await asked is None, "it was dropped before this was answered"
    assert await index.blob(digest(number)) is None
    await index.ready()
    assert index.held(digest(number)) is None
    assert index.usage().files == ROWS - 1
    index = await files.open()
    await index.ready()
    assert index.held(digest(number)) is None


async def test_a_blob_that_came_anew_is_the_new_one(files: Reopening) -> None:
    index = await files.open()
    await index.drop_blobs([digest(7)])
    new = BlobRecord(digest(7), 5, "x/y", 1e9)
    await index.set_blob(new)
    await index.ready()
    assert index.held(digest(7)) == new
    assert index.usage().files == ROWS


async def test_holders_are_not_mixed_up_however_many_sets_there_are(
    files: Reopening, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = sys.modules.get("proxy.index.links")
    if links is not None:  # it keeps sets of holders, and begins anew when there are many
        monkeypatch.setattr(links, "_SETS", 8)

    def of(number: int) -> list[Target]:
        repo = Target("docker.io", Repo(f"library/app{number}"))
        return [repo] if number % 3 else [repo, NGINX]

    for _ in range(2):
        index = await files.open()
        await index.ready()
        for number in range(60):
            for target in of(number):
                await index.link(target, [digest(number)])
            for other in range(0, number + 1, 7):
                assert set(await index.holders(digest(other))) == set(of(other))
        for number in range(60):
            assert set(await index.holders(digest(number))) == set(of(number))
            assert await index.linked(NGINX, digest(number)) == (number % 3 == 0)
            assert not await index.linked(Target("ghcr.io", Repo("a/b")), digest(number))


async def test_the_newest_tag_of_many_is_told(files: Reopening) -> None:
    index = await files.open()
    for number in range(20):
        await index.set_tag(NGINX, Tag(f"v{number}"), record(number, float(number)))
    index = await files.open()
    for number in range(20):
        assert await index.tag(NGINX, Tag(f"v{number}")) == record(number, float(number))
