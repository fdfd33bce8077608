"""Space below the limit: what is evicted, what stays, and that the limit always holds."""

import asyncio
import errno
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.content import eviction
from proxy.content.reservations import NoSpace
from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK, BlobRecord, disk_bytes
from proxy.index import Position
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import chunked
from tests.fakes.upstream import FakeUpstream
from tests.held import LIMIT, Held, opened
from tests.running import Start, until


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


async def test_the_coldest_goes_and_the_hot_stays(cache: Held) -> None:
    held = [await cache.blocks(number) for number in range(10)]
    assert cache.evictor.used == LIMIT
    cache.index.touch(held[0])
    await cache.blocks(99)
    kept = await cache.on_disk()
    assert held[0] in kept
    assert held[1] not in kept
    assert cache.counters.evictions >= 1
    assert cache.counters.evicted_bytes == cache.counters.evictions * 10 * BLOCK
    assert cache.evictor.used <= LIMIT


async def test_the_limit_holds_at_every_moment(cache: Held, tmp_path: Path) -> None:
    worst = 0

    async def watch() -> None:
        nonlocal worst
        while True:
            files = [*(tmp_path / "blobs").rglob("*"), *(tmp_path / "spool").iterdir()]
            worst = max(worst, sum(file.stat().st_size for file in files if file.is_file()))
            worst = max(worst, cache.evictor.used)
            await asyncio.sleep(0)

    few = asyncio.Semaphore(4)

    async def hold(number: int) -> None:
        async with few:
            await cache.blocks(number, 1 + number % 20)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*map(hold, range(60)))
    watcher.cancel()
    assert 0 < worst <= LIMIT


async def test_what_can_never_fit_evicts_nothing(cache: Held) -> None:
    held = await cache.blocks(1)
    with pytest.raises(NoSpace):
        await cache.evictor.reserve(LIMIT + 1)
    assert await cache.on_disk() == {held}


async def test_what_is_promised_to_others_cannot_be_had(cache: Held) -> None:
    others = await cache.evictor.reserve(LIMIT)
    with pytest.raises(NoSpace):
        await cache.evictor.reserve(1)
    others.release()
    others.release()
    (await cache.evictor.reserve(LIMIT)).release()
    assert cache.evictor.used == 0


async def test_a_promise_grows_and_keeps_what_it_has_when_it_cannot(cache: Held) -> None:
    growing = await cache.evictor.reserve(0)
    assert cache.evictor.used == 0
    await growing.grow(BLOCK + 1)
    await growing.grow(1)
    assert cache.evictor.used == 2 * BLOCK
    with pytest.raises(NoSpace):
        await growing.grow(LIMIT + 1)
    assert cache.evictor.used == 2 * BLOCK
    growing.release()
    assert cache.evictor.used == 0


async def test_t36_an_open_blob_is_readable_after_its_eviction(cache: Held) -> None:
    held = await cache.blocks(1)
    file = cache.store.open(held)
    assert file is not None
    (await cache.evictor.reserve(LIMIT)).release()
    assert cache.store.open(held) is None
    assert sha256(file.read(0, file.size)) == held
    file.close()


def watched(cache: Held) -> "asyncio.Task[None]":
    return asyncio.create_task(cache.evictor.watch(cache.clock))


async def test_the_background_begins_above_the_high_mark_and_ends_at_the_low(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock, high_mark=0.8, low_mark=0.5) as cache:
        watcher = watched(cache)
        held = [await cache.blocks(number) for number in range(8)]
        await asyncio.sleep(0.05)
        assert await cache.on_disk() == set(held), "not above the mark"
        held.append(await cache.blocks(8, 1))
        await until(lambda: cache.evictor.used <= LIMIT * 0.5)
        await until(lambda: cache.counters.evictions == 4)
        assert await cache.on_disk() == set(held[4:])
        watcher.cancel()


async def test_a_download_waits_only_for_the_room_it_needs(tmp_path: Path, clock: Clock) -> None:
    async with opened(tmp_path, clock, low_mark=0.5) as cache:
        held = [await cache.blocks(number) for number in range(10)]
        held.append(await cache.blocks(10))
        assert await cache.on_disk() == set(held[1:])


async def test_what_nobody_has_used_for_long_goes(tmp_path: Path, clock: Clock) -> None:
    async with opened(tmp_path, clock, max_age=1000.0) as cache:
        used, pinned, _, young = [await cache.blocks(number) for number in range(4)]
        cache.protected = {pinned}
        clock.advance(998.5)  # so the first three are older than 1000 s, and the last is not
        cache.index.touch(used)
        await cache.evictor.enforce(clock())
        assert await cache.on_disk() == {used, pinned, young}
        cache.protected = set()
        await cache.evictor.enforce(clock())
        assert await cache.on_disk() == {used, young}, "no longer spared"
        clock.advance(2000)
        await cache.evictor.enforce(clock())
        assert await cache.on_disk() == set()


async def test_what_is_spared_stays_and_the_rest_goes(cache: Held) -> None:
    held = [await cache.blocks(number) for number in range(10)]
    cache.protected = set(held[:4])
    for number in range(10, 16):
        await cache.blocks(number)
    assert set(held[:4]) <= await cache.on_disk()
    assert cache.evictor.used == LIMIT
    with pytest.raises(NoSpace, match="nothing is left to evict"):
        await cache.evictor.reserve(61 * BLOCK)
    assert await cache.on_disk() == set(held[:4])


async def test_quarantine_counts_into_the_limit(cache: Held, tmp_path: Path) -> None:
    for number in range(25):
        digest = await cache.blocks(number)
        await cache.content.faults.quarantine(digest, {"reason": "it has gone bad"})
        places = [tmp_path / "quarantine", tmp_path / "blobs/sha256"]
        files = [path for place in places for path in place.iterdir()]
        taken = sum(disk_bytes(path.stat().st_size) for path in files)
        assert cache.evictor.used == taken <= LIMIT
    assert list((tmp_path / "quarantine").iterdir()), "what fits is kept"


async def test_quarantine_goes_before_content(cache: Held, tmp_path: Path) -> None:
    held = [await cache.blocks(number) for number in range(9)]
    kept = await cache.content.faults.quarantine(held[0], {"reason": "a test"})
    assert kept is not None
    assert cache.evictor.used == 91 * BLOCK, "it counts, and so does its note"
    held.append(await cache.blocks(9))
    assert not list((tmp_path / "quarantine").iterdir())
    assert await cache.on_disk() == set(held[1:])
    assert cache.evictor.used == 90 * BLOCK


async def test_what_cannot_be_deleted_is_held_again(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [await cache.blocks(number) for number in range(10)]
    unlink = os.unlink
    refused = set(held[:2])

    def fails(name: str, *, dir_fd: int | None = None) -> None:
        if f"sha256:{name}" in refused:
            raise OSError(errno.EPERM, "Operation not permitted")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", fails)
    assert await cache.evictor.evict(30 * BLOCK) == (3, 30 * BLOCK)
    assert await cache.on_disk() == set(held[:2] + held[5:])
    assert len(await cache.index.records(held[:2])) == 2
    assert (cache.evictor.used, cache.counters.evictions) == (70 * BLOCK, 3)
    file = cache.store.open(held[0])
    assert file is not None, "it is served as before"
    file.close()


async def test_a_disk_that_deletes_nothing_is_full_and_nothing_is_forgotten(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = content.image(1)
    await cache.image("app:1", image)
    held = await cache.on_disk()

    def fails(name: str, *, dir_fd: int | None = None) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "unlink", fails)
    for _ in range(3):
        with pytest.raises(NoSpace):
            await cache.evictor.reserve(LIMIT)
    assert await cache.on_disk() == held
    assert cache.index.usage().files == len(held)
    listed = {child.digest for child in await cache.index.children(Digest(image.digest)) or ()}
    assert listed == set(image.blobs), "nor what it lists"
    assert cache.counters.evictions == 0


async def test_what_goes_is_what_was_told(cache: Held) -> None:
    held = [await cache.blocks(number, 1 + number) for number in range(8)]
    cache.index.touch(held[1])
    cache.protected = {held[2]}
    wanted = 12 * BLOCK
    told = await cache.evictor.coldest(wanted)
    blobs, freed = await cache.evictor.evict(wanted)
    assert {*held} - await cache.on_disk() == {record.digest for record in told}
    assert (blobs, freed) == (len(told), sum(disk_bytes(record.size) for record in told))
    assert [record.digest for record in told] == [held[0], held[3], held[4], held[5]]


async def test_a_manifest_goes_before_what_it_lists(cache: Held) -> None:
    image = content.image(1, layers=(BLOCK, BLOCK))
    await cache.image("app:1", image)
    for digest in image.layers:
        cache.index.touch(Digest(digest))
    gone: list[str] = []
    for _ in range(4):
        before = await cache.on_disk()
        await cache.evictor.evict(1)
        gone += before - await cache.on_disk()
    assert gone[0] == image.digest
    assert set(gone[1:]) == set(image.blobs)


async def test_c06_a_layer_that_a_warm_image_shares_stays(cache: Held) -> None:
    cold, warm = content.multi_platform(1), content.image(2, layers=(3 * BLOCK,))
    shared = warm.layers[0]
    other = content.Image(
        manifest=warm.manifest + b"\n", media_type=warm.media_type, blobs=warm.blobs
    )
    await cache.image("app:shared-and-cold", other)
    await cache.image("app:cold", cold)
    await cache.image("app:warm", warm)
    for touched in (other, cold, warm):
        cache.index.touch(Digest(touched.digest))
        cache.clock.advance(10)
    held = await cache.on_disk()
    freed = 0
    while freed < (len(cold.manifests) + len(cold.blobs) + 1) * BLOCK:
        freed += (await cache.evictor.evict(1))[1]
    assert held - await cache.on_disk() == {other.digest, *cold.manifests, *cold.blobs}
    assert shared in await cache.on_disk()


async def test_many_go_in_batches_and_others_have_their_turn(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without files: what is counted is how much is done between two turns of the loop."""
    count = 3_000
    async with opened(tmp_path, clock, max_size=count * BLOCK) as cache:
        digests = [sha256(str(number).encode()) for number in range(count)]
        records = (eviction.BlobRecord(digest, 1, None, clock()) for digest in digests)
        await asyncio.gather(*map(cache.index.set_blob, records))
        batches: list[int] = []
        turns = 0
        turns_at: list[int] = []
        delete = cache.store.delete

        async def counted(victims: list[Digest]) -> list[Digest]:
            batches.append(len(victims))
            turns_at.append(turns)
            return await delete(victims)

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        monkeypatch.setattr(cache.store, "delete", counted)
        turning = asyncio.create_task(turn())
        assert await cache.evictor.evict(count * BLOCK) == (count, count * BLOCK)
        turning.cancel()
        assert max(batches) <= 256
        assert sum(batches) == count
        assert len(set(turns_at)) == len(batches), "the loop turned between any two batches"


async def test_one_eviction_passes_by_protected_content_once(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "_BATCH", 4)
    cache.protected = {await cache.blocks(number, 1) for number in range(10)}
    others = {await cache.blocks(number, 1) for number in range(10, 30)}
    looked_at: Counter[Digest] = Counter()
    coldest = cache.index.coldest

    async def watched(after: Position | None, limit: int) -> list[tuple[Position, BlobRecord]]:
        page = await coldest(after, limit)
        looked_at.update(record.digest for _, record in page)
        return page

    monkeypatch.setattr(cache.index, "coldest", watched)
    assert await cache.evictor.evict(len(others) * BLOCK) == (len(others), len(others) * BLOCK)
    assert await cache.on_disk() == cache.protected
    assert {looked_at[digest] for digest in cache.protected} == {1}


@pytest.mark.parametrize("announced", ["none", "some", "all"])
async def test_c05_the_limit_holds_under_200_downloads_of_sizes_partly_unknown(
    start: Start, upstream: FakeUpstream, announced: str
) -> None:
    limit = 2 * 1024 * 1024
    proxy = await start(storage={"max_size": limit})
    blobs = {}
    for number in range(200):
        data = content.blob(5_000 + 400 * number, seed=number)
        blobs[upstream.add_blob("library/app", data)] = data
        if announced == "none" or (announced == "some" and number % 2):
            upstream.fault(chunked(), kind="blob", reference=content.digest(data))
    assert sum(map(len, blobs.values())) > 4 * limit
    most = fullest = 0

    def on_disk() -> int:
        """Every file once, though it be renamed meanwhile; the loop begins nothing new so long."""
        sizes = {}
        for place in ("spool", "blobs/sha256"):
            with os.scandir(proxy.storage / place) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        sizes[entry.inode()] = disk_bytes(entry.stat().st_size)
        return sum(sizes.values())

    async def sample() -> None:
        nonlocal most, fullest
        while True:
            fullest = max(fullest, on_disk())
            for _ in range(20):
                most = max(most, proxy.stats["cache"]["bytes"])
                await asyncio.sleep(0)

    sampling = asyncio.create_task(sample())
    answers = await asyncio.gather(*(proxy.get(f"/v2/app/blobs/{digest}") for digest in blobs))
    await proxy.settled()
    sampling.cancel()
    assert [answer.body for answer in answers] == list(blobs.values())
    assert limit // 2 < most <= limit
    assert limit // 2 < fullest <= limit
