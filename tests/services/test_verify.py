"""Verification of held content: its findings, and its repairs."""

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import Conflict, UpstreamUnavailable
from proxy.core.names import Digest, Target
from proxy.services import missing, verify
from proxy.services.verify import Verifier
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.held import Held, named, opened
from tests.running import until
from tests.services.verifying import DAMAGES, DATA, IMAGE, LAYER, NAME, altered


class Asked(list[tuple[Target, str, str | None]]):
    """What was to be fetched again, by a fetch that says it has done so."""

    async def __call__(self, target: Target, digest: Digest, media_type: str | None) -> bool:
        self.append((target, digest, media_type))
        return True


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock, max_size=10**9) as held:
        await held.image("app", IMAGE)
        yield held


@pytest.fixture
def verifier(cache: Held, asked: Asked, clock: Clock) -> Verifier:
    return Verifier(cache.content, asked, clock)


async def run(
    verifier: Verifier, *, repair: bool = False, rate: int = 0, restart: bool = False
) -> list[dict[str, Any]]:
    return [event async for event in verifier.run(repair=repair, rate=rate, restart=restart)]


async def test_t70_valid_content_is_only_counted(
    cache: Held, verifier: Verifier, asked: Asked
) -> None:
    files, size = len(IMAGE.blobs) + 1, sum(map(len, IMAGE.blobs.values())) + len(IMAGE.manifest)
    start, done = await run(verifier, repair=True)
    assert start == {
        "event": "start",
        "blobs": files,
        "bytes": cache.index.usage().disk_bytes,
        "resumed": False,
    }
    assert done == {
        "event": "done",
        "blobs": files,
        "bytes": start["bytes"],
        "bad": 0,
        "repaired": 0,
    }
    assert (cache.counters.verified, cache.counters.verified_bytes) == (files, size)
    assert not asked
    assert await cache.on_disk() == {IMAGE.digest, *IMAGE.blobs}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_bad_content_is_set_aside_with_a_note(
    cache: Held, verifier: Verifier, asked: Asked, damage: str
) -> None:
    found = DAMAGES[damage](DATA)
    cache.path(LAYER).write_bytes(found)
    _, bad, done = await run(verifier)
    place = cache.root / "quarantine" / LAYER.removeprefix("sha256:")
    assert bad == {
        "event": "bad",
        "digest": LAYER,
        "reason": "its bytes are not its name",
        "quarantined": str(place),
        "repaired": None,
        "failure": None,
        "images": [NAME],
    }
    assert (done["bad"], done["repaired"]) == (1, 0)
    assert place.read_bytes() == found
    assert json.loads(place.with_suffix(".json").read_text()) == {
        "digest": LAYER,
        "found_at": cache.clock(),
        "reason": "its bytes are not its name",
        "size": len(DATA),
        "size_found": len(found),
        "digest_found": content.digest(found),
        "media_type": None,
        "images": [NAME],
        "repositories": ["docker.io/library/app"],
    }
    assert LAYER not in await cache.on_disk()
    assert await cache.index.blob(Digest(LAYER)) is None
    assert cache.counters.corrupted == 1
    assert not asked, "without being told to"
    [_, missing, again] = await run(verifier)
    assert (missing["digest"], missing["images"]) == (LAYER, [NAME]), "its image is still broken"
    assert (again["bad"], again["blobs"]) == (1, len(IMAGE.blobs))


async def test_missing_files_are_reported_and_forgotten(cache: Held, verifier: Verifier) -> None:
    cache.path(LAYER).unlink()
    _, bad, _ = await run(verifier)
    assert (bad["digest"], bad["reason"]) == (LAYER, "its file is missing")
    assert bad["quarantined"] is None
    assert await cache.index.blob(Digest(LAYER)) is None
    assert not list((cache.root / "quarantine").iterdir())


async def test_unreadable_content_is_set_aside(
    cache: Held, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, inode = os.pread, cache.path(LAYER).stat().st_ino

    def fails(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", fails)
    _, bad, done = await run(verifier)
    assert bad["reason"] == "it cannot be read: Input/output error"
    assert bad["quarantined"] is not None
    assert done["bad"] == 1


async def test_a_link_out_of_the_store_is_set_aside(
    cache: Held, verifier: Verifier, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    cache.path(LAYER).unlink()
    cache.path(LAYER).symlink_to(secret)
    _, bad, _ = await run(verifier)
    assert "opening" in bad["reason"]
    assert not cache.path(LAYER).is_symlink()
    assert secret.read_bytes() == DATA


async def test_repairs_go_to_the_newest_holder_first_and_then_to_the_others(
    cache: Held, clock: Clock
) -> None:
    other, _ = named("ghcr.io/team/app:1")
    hub, _ = named(NAME)
    await cache.index.link(other, [Digest(LAYER)])
    cache.path(LAYER).write_bytes(b"")
    cache.path(IMAGE.digest).write_bytes(b"{}")
    tried: list[tuple[str, str, str | None]] = []

    async def fetch(target: Target, digest: Digest, media_type: str | None) -> bool:
        tried.append((str(target), digest, media_type))
        if target == other:
            raise UpstreamUnavailable("away")
        return True

    *_, done = await run(Verifier(cache.content, fetch, clock), repair=True)
    assert sorted(tried) == sorted(
        [
            (str(other), LAYER, None),
            (str(hub), LAYER, None),
            (str(hub), IMAGE.digest, IMAGE.media_type),
        ]
    )
    assert tried.index((str(other), LAYER, None)) < tried.index((str(hub), LAYER, None))
    assert (done["bad"], done["repaired"]) == (2, 2)
    assert cache.counters.repaired == 2


async def test_two_verifications_at_the_same_time_are_refused(verifier: Verifier) -> None:
    async with aclosing(verifier.run(repair=False, rate=0, restart=False)) as first:
        await anext(first)
        with pytest.raises(Conflict, match="a verification is running"):
            await run(verifier)
    assert len(await run(verifier)) == 2, "the one that was broken off is over"


async def test_an_interrupted_run_continues_unless_a_restart_is_requested(
    tmp_path: Path, cache: Held, verifier: Verifier, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        await cache.blocks(number, 1)
    cache.path(IMAGE.config).write_bytes(b"")
    monkeypatch.setattr(verify, "REPORT_SECONDS", -1.0)
    order = sorted(await cache.on_disk())
    async with aclosing(verifier.run(repair=False, rate=0, restart=False)) as events:
        async for event in events:
            if event["event"] == "progress" and event["blobs"] == 20:
                break
    again = Verifier(cache.content, asked, cache.clock)  # as after a restart
    async with aclosing(again.run(repair=False, rate=0, restart=False)) as events:
        start = await anext(events)
        assert (start["event"], start["resumed"]) == ("start", True)
        following = [event async for event in events]
    assert following[0]["blobs"] in (20, 21)
    assert following[-1]["event"] == "done"
    assert following[-1]["blobs"] == len(order)
    assert following[-1]["bad"] == 1, "over both parts"
    [start, *_] = await run(verifier)
    assert not start["resumed"], "it was done"
    async with aclosing(verifier.run(repair=False, rate=0, restart=False)) as events:
        async for event in events:
            if event["event"] == "progress" and event["blobs"] == 20:
                break
    [start, *_, done] = await run(verifier, restart=True)
    assert not start["resumed"]
    assert done["blobs"] == len(order) - 1


async def test_a_cancelled_run_continues(cache: Held, verifier: Verifier) -> None:
    for number in range(10):
        await cache.blocks(number, 1)

    async def consume() -> None:
        async for event in verifier.run(repair=False, rate=10_000, restart=False):
            assert event["event"] != "done"

    running = asyncio.create_task(consume())
    await until(lambda: cache.counters.verified >= 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [start, *_, done] = await run(verifier)
    assert start["resumed"]
    assert done["blobs"] == 10 + len(IMAGE.blobs) + 1
    repeated = cache.counters.verified - done["blobs"]
    assert repeated <= 1, "more than the blob that was being hashed"


async def test_the_rate_is_kept(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own that sleeping moves: so many bytes take so many seconds."""
    now = 100.0
    slept: list[float] = []
    sleep = asyncio.sleep

    async def sleeps(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds
        await sleep(0)

    monkeypatch.setattr(verify.time, "monotonic", lambda: now)
    monkeypatch.setattr(verify.asyncio, "sleep", sleeps)
    size = sum(map(len, IMAGE.blobs.values())) + len(IMAGE.manifest)
    started, rate = now, 50_000
    [first, *progress, done] = await run(verifier, rate=rate)
    took = now - started
    assert done["bytes"] == first["bytes"]
    assert took == pytest.approx(size / rate)
    assert [event["event"] for event in progress] == ["progress"] * len(progress)
    started = now
    await run(verifier, rate=0)
    assert now == started


async def test_content_may_come_and_go_during_verification(
    cache: Held, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "REPORT_SECONDS", -1.0)
    async with aclosing(verifier.run(repair=False, rate=0, restart=False)) as events:
        await anext(events)
        await anext(events)
        await cache.blocks(7)
        await cache.evictor.evict(10**9)
        following = [event async for event in events]
    assert following[-1]["bad"] == 0
    assert not await cache.on_disk()


# What becomes of clients


async def test_a_missing_piece_is_fetched_last_from_repositories_not_known_to_hold_it(
    cache: Held,
) -> None:
    other, own = named("docker.io/library/other:1")[0], named(NAME)[0]
    await cache.content.links.add(other, [Digest(IMAGE.digest)])
    holders = await missing.holders(cache.content, Digest(LAYER))
    assert holders == [other, own], "the last is tried first"


async def test_t61_a_lost_piece_that_no_image_needs_is_forgotten(
    cache: Held, verifier: Verifier, asked: Asked
) -> None:
    cache.path(LAYER).write_bytes(altered(DATA))
    assert (await run(verifier))[-1]["bad"] == 1
    target, tag = named(NAME)
    await cache.index.set_tag(target, tag, None)
    assert (await run(verifier, repair=True))[-1]["bad"] == 0
    assert not asked


async def test_t61_an_interrupted_round_counts_each_piece_once(
    tmp_path: Path, cache: Held, asked: Asked
) -> None:
    cache.path(LAYER).write_bytes(altered(DATA))
    verifier = Verifier(cache.content, asked, cache.clock)
    async with aclosing(verifier.run(repair=False, rate=0, restart=False)) as events:
        async for event in events:
            if event["event"] == "bad":
                break
    again = Verifier(cache.content, asked, cache.clock)  # as after a restart
    *_, done = await run(again, repair=True)
    assert (done["bad"], done["repaired"]) == (1, 1)


async def test_the_scrub_of_a_new_cache_waits_for_its_interval(
    cache: Held, verifier: Verifier, clock: Clock
) -> None:
    scrub = asyncio.create_task(verifier.scrub(3600.0, 0))
    async with asyncio.timeout(60):
        while (noted := await cache.index.note("verify")) is None:
            await asyncio.sleep(0.01)
    scrub.cancel()
    await asyncio.wait([scrub])
    assert noted == {"done_at": clock()}, "nothing was verified yet"


async def test_t67_a_stop_ends_the_scrub_for_good(cache: Held, verifier: Verifier) -> None:
    await cache.index.set_note("verify", {"done_at": 0.0})
    scrub = asyncio.create_task(verifier.scrub(1.0, 1))
    await until(lambda: verifier._is_running)
    verifier.stop()
    await asyncio.wait_for(scrub, 60)
    noted = await cache.index.note("verify")
    assert "done_at" not in noted, "the next process goes on"


async def test_t67_a_stop_interrupts_a_long_repair(cache: Held, clock: Clock) -> None:
    fetching = asyncio.Event()

    async def fetch(*_: object) -> bool:
        fetching.set()
        await asyncio.Event().wait()
        return True

    verifier = Verifier(cache.content, fetch, clock)
    cache.path(LAYER).write_bytes(altered(DATA))
    running = asyncio.create_task(run(verifier, repair=True))
    await fetching.wait()
    verifier.stop()
    events = await asyncio.wait_for(running, 60)
    assert "done" not in {event["event"] for event in events}
    again = Verifier(cache.content, Asked(), clock)  # as after a restart
    *_, done = await run(again, repair=True)
    assert (done["bad"], done["repaired"]) == (1, 1)


async def test_the_scrub_waits_for_a_running_verification(
    cache: Held, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep
    waits: list[float] = []

    async def sleeps(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(verify.asyncio, "sleep", sleeps)
    await cache.index.set_note("verify", {"done_at": 0.0})
    async with aclosing(verifier.run(repair=False, rate=0, restart=False)) as events:
        await anext(events)
        scrub = asyncio.create_task(verifier.scrub(1.0, 0))
        await until(lambda: waits.count(60) >= 2)
        scrub.cancel()


async def test_progress_is_reported_while_a_large_blob_is_read(
    cache: Held, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "REPORT_SECONDS", 0.01)
    monkeypatch.setattr("proxy.content.checks.CHUNK", 10_000)
    run = verifier.run(repair=False, rate=1_000_000, restart=True)
    events = [event async for event in run]
    read = {(event["blobs"], event["bytes"]) for event in events if event["event"] == "progress"}
    assert len(read) > len({blobs for blobs, _ in read}), "several within one blob"
    assert events[-1]["bytes"] == events[0]["bytes"]
