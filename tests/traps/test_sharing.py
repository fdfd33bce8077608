"""Downloads of one digest from several upstreams: unproven bytes stay with their upstream."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientError

from tests.fakes import content
from tests.fakes.faults import announce, body, corrupt, stall
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start, until

BIG = content.image(7, layers=(3_000_000,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
GOOD = f"/v2/app/blobs/{LAYER}"
EVIL = f"/v2/evil/app/blobs/{LAYER}"


@pytest.fixture
async def evil() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        fake.add("app", BIG)
        yield fake


@pytest.fixture
async def both(start: Start, upstream: FakeUpstream, evil: FakeUpstream) -> Proxy:
    """A proxy of two upstreams that both have the layer, with room for little more than it."""
    upstream.add("library/app", BIG)
    return await start(upstreams={"evil": {"url": evil.url}}, storage={"max_size": "20MiB"})


async def arriving(proxy: Proxy, upstream: str, size: int) -> None:
    """Return once more than ``size`` bytes of the layer have arrived from an upstream."""
    await until(
        lambda: any(
            download["upstream"] == upstream and download["bytes"] >= size
            for download in proxy.stats["downloads"]
        )
    )


def stalled(upstream: FakeUpstream, *, junk: bool = False) -> asyncio.Event:
    """Let an upstream send a third of the layer, and the rest when the event returned is set."""
    release = asyncio.Event()
    spoilt = [body(b"\0" * len(DATA))] if junk else []
    upstream.fault(*spoilt, stall(1_000_000, release), kind="blob", method="GET")
    return release


async def test_t47_unproven_bytes_of_one_upstream_reach_no_client_of_another(
    both: Proxy, evil: FakeUpstream
) -> None:
    release = stalled(evil, junk=True)
    victim = asyncio.create_task(both.get(EVIL))
    await arriving(both, "evil", 900_000)
    part = await both.get(GOOD, Range="bytes=0-99")
    assert (part.status, part.body) == (206, DATA[:100])
    whole = await both.get(GOOD)
    assert (whole.status, whole.body) == (200, DATA)
    release.set()
    with pytest.raises(ClientError):
        await victim
    await both.settled()
    again = await both.get(GOOD)
    assert (again.headers["Cache-Status"], again.body) == ("Millpond; hit", DATA)
    assert both.stats["cache"]["content_mismatches"] == 1


@pytest.mark.parametrize("first", ["good", "evil"])
async def test_t47_two_upstreams_at_once_and_the_second_finds_the_content_held(
    both: Proxy, upstream: FakeUpstream, evil: FakeUpstream, first: str
) -> None:
    releases = {"good": stalled(upstream), "evil": stalled(evil)}
    pulls = {
        "good": asyncio.create_task(both.get(GOOD)),
        "evil": asyncio.create_task(both.get(EVIL)),
    }
    await arriving(both, "docker.io", 900_000)
    await arriving(both, "evil", 900_000)
    releases.pop(first).set()
    assert (await pulls.pop(first)).body == DATA
    await until(lambda: both.stats["cache"]["files"] == 1)
    for release in releases.values():
        release.set()
    for pull in pulls.values():
        assert (await pull).body == DATA
    await both.settled()
    assert both.held() == {LAYER}
    assert not both.spooled()
    numbers = both.stats["cache"]
    assert (numbers["files"], numbers["storage_errors"]) == (1, 0)
    assert numbers["bytes"] == -(-len(DATA) // 4096) * 4096, "counted once"
    for path in (GOOD, EVIL):
        assert (await both.get(path)).headers["Cache-Status"] == "Millpond; hit"


async def test_t47_held_content_is_served_while_the_own_upstream_still_crawls(
    both: Proxy, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    release = stalled(upstream)
    slow = asyncio.create_task(both.get(GOOD))
    await arriving(both, "docker.io", 900_000)
    assert (await both.get(EVIL)).body == DATA
    await until(lambda: both.stats["cache"]["files"] == 1)
    assert (await both.get(GOOD)).body == DATA, "confirmed by HEAD, and then from the disk"
    assert upstream.count("GET", "blob") == 1
    release.set()
    assert (await slow).body == DATA


async def test_t47_a_size_that_one_upstream_claims_keeps_no_other_from_being_kept(
    both: Proxy, evil: FakeUpstream
) -> None:
    evil.fault(announce(10**12), kind="blob", method="GET")
    with pytest.raises(ClientError):
        await both.get(EVIL)
    assert (await both.get(GOOD)).body == DATA
    await both.settled()
    assert LAYER in both.held()


async def test_t47_a_size_that_an_upstream_claims_for_a_download_is_told_to_no_other(
    both: Proxy, evil: FakeUpstream
) -> None:
    release = asyncio.Event()
    evil.fault(announce(1000), corrupt(0), stall(1_000_000, release), kind="blob", method="GET")
    victim = asyncio.create_task(both.get(EVIL))
    await arriving(both, "evil", 900_000)
    head: Answer = await both.head(GOOD)
    assert head.headers["Content-Length"] == str(len(DATA))
    release.set()
    await asyncio.gather(victim, return_exceptions=True)


async def test_t47_repositories_of_one_upstream_share_a_download_once_it_is_confirmed(
    both: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("org/copy", BIG)
    upstream.add("org/else", content.image(99))
    release = stalled(upstream)
    first = asyncio.create_task(both.get(GOOD))
    await arriving(both, "docker.io", 900_000)
    assert (await both.get(f"/v2/org/else/blobs/{LAYER}")).status == 404
    second = asyncio.create_task(both.get(f"/v2/org/copy/blobs/{LAYER}"))
    await upstream.until(lambda: upstream.count("HEAD", "blob") == 2)
    release.set()
    assert [(await first).body, (await second).body] == [DATA, DATA]
    assert upstream.bodies(LAYER) == 1
