"""Bad content leaves the cache: what is counted and quarantined, and that its space is freed."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.content.checks import no_pause
from proxy.content.reservations import NoSpace
from proxy.core.errors import StorageError
from proxy.core.manifests import OCI_MANIFEST
from proxy.core.names import Digest
from proxy.core.records import BLOCK
from proxy.runtime import page_cache
from tests.fakes.clock import Clock
from tests.held import LIMIT, Held, opened
from tests.running import until

NOTE: dict[str, object] = {"reason": "its bytes are not its name"}


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


def test_a_full_cache_is_no_failure_of_the_disk(cache: Held) -> None:
    cache.content.faults.count_error(NoSpace("no room"))
    assert cache.counters.storage_errors == 0
    cache.content.faults.count_error(StorageError("the disk failed"))
    assert cache.counters.storage_errors == 1


async def test_dropped_content_is_gone_and_gives_its_room_back(cache: Held) -> None:
    digest = await cache.blocks(1)
    await cache.content.faults.drop(digest, reason="test")
    assert await cache.content.record(digest) is None
    assert await cache.on_disk() == set()
    assert (cache.evictor.used, cache.counters.storage_errors) == (0, 1)
    assert await cache.index.loose_files() == [], "the next start does not look for it"
    assert await cache.blocks(1) == digest, "it can be stored again"
    assert await cache.on_disk() == {digest}


async def test_content_without_a_file_can_be_dropped(cache: Held) -> None:
    digest = await cache.blocks(1)
    cache.path(digest).unlink()
    await cache.content.faults.drop(digest, reason="test")
    assert await cache.content.record(digest) is None
    assert cache.evictor.used == 0


async def test_content_that_is_set_aside_has_its_note_beside_it(cache: Held) -> None:
    digest = await cache.blocks(1)
    path = await cache.content.faults.quarantine(digest, NOTE)
    assert path is not None
    assert Path(path).stat().st_size == 10 * BLOCK
    [text] = await cache.content.faults.notes()
    assert json.loads(text) == {"digest": digest, "found_at": cache.clock(), **NOTE}
    assert cache.counters.corrupted == 1
    assert await cache.content.record(digest) is None
    assert await cache.blocks(1) == digest, "it can be stored again"


async def test_without_room_for_the_note_the_content_is_kept_all_the_same(cache: Held) -> None:
    digest = await cache.blocks(1)
    others = await cache.evictor.reserve(LIMIT - 10 * BLOCK)
    path = await cache.content.faults.quarantine(digest, NOTE)
    assert path is not None
    assert Path(path).exists()
    assert await cache.content.faults.notes() == []
    others.release()


async def test_the_room_of_a_note_is_given_back(cache: Held) -> None:
    for number in range(3):
        await cache.content.faults.quarantine(await cache.blocks(number), NOTE)
    cache.store.quarantine.empty()
    (await cache.evictor.reserve(LIMIT)).release()


async def test_content_that_cannot_be_set_aside_is_deleted(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(digest: str, note: str) -> str:
        raise StorageError("no quarantine")

    digest = await cache.blocks(1)
    monkeypatch.setattr(cache.store.quarantine, "add", full)
    assert await cache.content.faults.quarantine(digest, NOTE) is None
    assert await cache.on_disk() == set()
    assert cache.evictor.used == 0


async def test_content_is_not_found_again_while_it_is_being_set_aside(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    taking, go_on, take = threading.Event(), threading.Event(), cache.store.quarantine.add

    def slow(digest: Digest, note: str) -> str:
        taking.set()
        assert go_on.wait(30)
        return take(digest, note)

    digest = await cache.blocks(1)
    monkeypatch.setattr(cache.store.quarantine, "add", slow)
    leaving = asyncio.create_task(cache.content.faults.quarantine(digest, NOTE))
    try:
        await until(taking.is_set)
        assert cache.path(digest).exists()
        assert await cache.content.find(digest) is None
    finally:
        go_on.set()
        await leaving
    assert await cache.content.find(digest) is None


async def test_a_check_leaves_in_the_page_cache_what_was_used_today(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr(page_cache, "forget", lambda fd, start, stop: left.append(stop - start))
    digest = await cache.blocks(1)
    assert (await cache.content.faults.check(digest, no_pause)).problem is None
    assert left == []
    cache.clock.advance(86_401)
    assert (await cache.content.faults.check(digest, no_pause)).problem is None
    assert sum(left) == 10 * BLOCK
    assert (cache.counters.verified, cache.counters.verified_bytes) == (2, 20 * BLOCK)


async def test_a_check_leaves_in_the_page_cache_what_belongs_to_an_image_used_today(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr(page_cache, "forget", lambda fd, start, stop: left.append(stop - start))
    digest = await cache.blocks(1)
    layer = {"digest": digest, "size": 10 * BLOCK}
    image = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()
    manifest = await cache.hold(image, OCI_MANIFEST)
    cache.clock.advance(86_401)
    cache.index.touch(manifest)
    await cache.index.uses.flush()
    assert (await cache.content.faults.check(digest, no_pause)).problem is None
    assert left == []
