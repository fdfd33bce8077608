"""Unproven content evicts no more than its share of held content."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientError

from tests.fakes import content
from tests.fakes.faults import announce, chunked, stall
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

MIB = 1024 * 1024
LIMIT = 20 * MIB
LONG = 12 * MIB
"""A body that goes on for longer than it may evict; one without an end is no different."""

LOST = 3
"""Blobs of 1 MiB that may go: a tenth of the cache, and what is cut to whole blobs and leads."""


@pytest.fixture
async def evil() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture
async def proxy(start: Start, evil: FakeUpstream) -> Proxy:
    return await start(
        upstreams={"evil": {"url": evil.url}}, storage={"max_size": LIMIT, "unproven_share": 0.1}
    )


async def filled(proxy: Proxy, upstream: FakeUpstream, blobs: int = 19) -> set[str]:
    """Let so many blobs of 1 MiB be held, and return their digests."""
    names = set()
    for number in range(blobs):
        name = upstream.add_blob("library/app", content.blob(MIB, number))
        assert (await proxy.get(f"/v2/app/blobs/{name}")).status == 200
        names.add(name)
    await proxy.settled()
    assert names <= proxy.held()
    return names


def long_body(fake: FakeUpstream, number: int) -> tuple[str, bytes]:
    data = content.blob(LONG, f"long {number}")
    return f"/v2/evil/app/blobs/{fake.add_blob('app', data)}", data


def within_limit(proxy: Proxy) -> bool:
    numbers = proxy.stats["cache"]
    return bool(numbers["bytes"] <= LIMIT)


async def test_t50_a_false_size_evicts_nothing(
    proxy: Proxy, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    held = await filled(proxy, upstream)
    name = evil.add_blob("app", b"little")
    evil.fault(announce(LIMIT - 2 * MIB), kind="blob")
    for _ in range(3):
        with pytest.raises(ClientError):
            await proxy.get(f"/v2/evil/app/blobs/{name}")
    assert held <= proxy.held()
    assert proxy.stats["cache"]["evictions"] == 0


async def test_t50_a_body_without_end_evicts_a_share_and_then_passes_through(
    proxy: Proxy, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    held = await filled(proxy, upstream)
    evil.fault(chunked(), kind="blob")
    for number in range(4):
        path, data = long_body(evil, number)
        assert (await proxy.get(path)).body == data, "the client gets all of it"
        await proxy.settled()
        assert within_limit(proxy)
    assert len(held - proxy.held()) <= LOST, "of all four together"
    await until(lambda: proxy.stats["cache"]["bytes"] == MIB * len(proxy.held()))
    assert not proxy.spooled()
    assert proxy.stats["cache"]["storage_errors"] == 0


async def test_t50_bodies_without_end_share_one_bound(
    proxy: Proxy, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    held = await filled(proxy, upstream)
    release = asyncio.Event()
    evil.fault(chunked(), stall(4 * MIB, release), kind="blob")
    bodies = [long_body(evil, number) for number in range(6)]
    pulls = [asyncio.create_task(proxy.get(path)) for path, _ in bodies]
    await until(lambda: evil.count("GET", "blob") == 12)  # each once to keep, and once to pass on
    assert within_limit(proxy)
    assert len(held - proxy.held()) <= LOST
    release.set()
    for pull, (_, data) in zip(pulls, bodies, strict=True):
        assert (await pull).body == data
    assert len(held - proxy.held()) <= LOST


async def test_t50_what_one_upstream_sends_takes_no_room_from_another(
    proxy: Proxy, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    await filled(proxy, upstream)
    release = asyncio.Event()
    evil.fault(chunked(), stall(1_900_000, release), kind="blob")
    path, _ = long_body(evil, 0)
    pull = asyncio.create_task(proxy.get(path))
    await until(lambda: any(flight["bytes"] > MIB for flight in proxy.stats["downloads"]))
    name = upstream.add_blob("library/app", content.blob(MIB, "new"))
    assert (await proxy.get(f"/v2/app/blobs/{name}")).status == 200
    await until(lambda: name in proxy.held())
    release.set()
    assert (await pull).status == 200


async def test_t50_free_room_may_be_filled_by_any_body(proxy: Proxy, evil: FakeUpstream) -> None:
    evil.fault(chunked(), kind="blob")
    path, data = long_body(evil, 0)
    for _ in range(2):
        assert (await proxy.get(path)).body == data
        await proxy.settled()
    numbers = proxy.stats["upstreams"]["evil"]
    assert (numbers["misses"], numbers["hits"], numbers["through"]) == (1, 1, 0)


async def test_t50_an_honest_size_above_the_share_evicts_nothing(
    proxy: Proxy, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    held = await filled(proxy, upstream)
    path, data = long_body(evil, 0)
    assert (await proxy.get(path)).body == data
    numbers = proxy.stats["upstreams"]["evil"]
    assert (numbers["misses"], numbers["through"]) == (0, 1)
    assert held <= proxy.held()


async def test_t50_a_spool_that_is_given_up_counts_until_its_last_reader_has_left(
    proxy: Proxy, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    await filled(proxy, upstream)
    release = asyncio.Event()
    evil.fault(chunked(), stall(6 * MIB, release), kind="blob")
    path, data = long_body(evil, 0)
    pull = asyncio.create_task(proxy.get(path))
    await until(lambda: evil.count("GET", "blob") == 2)
    await proxy.settled()
    left = MIB * len(proxy.held())
    assert left + MIB < proxy.stats["cache"]["bytes"] <= LIMIT
    release.set()
    assert (await pull).body == data
    await until(lambda: proxy.stats["cache"]["bytes"] == left)
