"""What is prefetched, and what is not."""

import asyncio
from typing import Any

import pytest

from tests.fakes import content, faults
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.leaks import at_rest, nothing_left, working
from tests.running import Proxy, Start, until

IMAGE = content.image(5, layers=(1000, 20_000, 300_000, 4000))
BLOBS = [IMAGE.config, *IMAGE.layers]
LATEST = "/v2/app/manifests/latest"
OFF = {"blobs": 0}


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)


async def with_prefetch(start: Start, **bounds: Any) -> Proxy:
    return await start(prefetch=bounds)


def path(digest: str) -> str:
    return f"/v2/app/blobs/{digest}"


def counted(proxy: Proxy) -> tuple[int, int, int, int]:
    """Return blobs and bytes fetched ahead, and those of them that were used."""
    cache = proxy.stats["cache"]
    names = ("blobs", "bytes", "used_blobs", "used_bytes")
    blobs, size, used, used_bytes = (cache[f"prefetched_{name}"] for name in names)
    return blobs, size, used, used_bytes


def readers(proxy: Proxy) -> list[int]:
    """Return how many read each download, prefetches included."""
    return [download["readers"] for download in proxy.stats["downloads"]]


TOTAL = sum(len(data) for data in IMAGE.blobs.values())


async def test_a_get_of_a_manifest_prefetches_its_blobs(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await with_prefetch(start)
    assert (await proxy.get(LATEST)).body == IMAGE.manifest
    await until(lambda: proxy.held() == {IMAGE.digest, *BLOBS})
    assert upstream.count("GET", "blob") == len(BLOBS)
    await until(lambda: counted(proxy) == (5, TOTAL, 0, 0))
    await proxy.settled()  # proven is not yet stored
    for digest in BLOBS:
        assert (await proxy.get(path(digest))).body == IMAGE.blobs[digest]
    assert upstream.count("GET", "blob") == len(BLOBS)
    assert counted(proxy) == (5, TOTAL, 5, TOTAL)
    assert (proxy.numbers["misses"], proxy.numbers["hits"]) == (1, 5)
    await proxy.get(path(BLOBS[0]))
    assert counted(proxy) == (5, TOTAL, 5, TOTAL), "used is used, however often"
    metrics = (await proxy.get("/metrics")).body.decode()
    assert "millpond_prefetched_blobs_total 5.0" in metrics
    assert f"millpond_prefetched_used_bytes_total {float(TOTAL)}" in metrics


async def test_a_client_joins_a_prefetch(start: Start, upstream: FakeUpstream) -> None:
    gate = upstream.hold(kind="blob")
    proxy = await with_prefetch(start)
    await proxy.get(LATEST)
    await until(lambda: readers(proxy) == [1] * len(BLOBS))
    asked = [asyncio.create_task(proxy.get(path(digest))) for digest in BLOBS]
    await until(lambda: readers(proxy) == [2] * len(BLOBS))
    gate.set()
    for digest, answer in zip(BLOBS, await asyncio.gather(*asked), strict=True):
        assert answer.body == IMAGE.blobs[digest]
    assert upstream.count("GET", "blob") == len(BLOBS)
    assert proxy.numbers["joins"] == len(BLOBS)
    await until(lambda: counted(proxy) == (5, TOTAL, 5, TOTAL))


async def test_a_manifest_by_digest_is_prefetched_too(start: Start, upstream: FakeUpstream) -> None:
    proxy = await with_prefetch(start)
    await proxy.head(LATEST)
    await proxy.get(f"/v2/app/manifests/{IMAGE.digest}")
    await until(lambda: proxy.held() == {IMAGE.digest, *BLOBS})


async def test_requests_that_need_no_layers_prefetch_nothing(
    start: Start, upstream: FakeUpstream
) -> None:
    index = upstream.add("library/many", content.multi_platform())
    proxy = await with_prefetch(start)
    await proxy.head(LATEST)
    await proxy.head(f"/v2/app/manifests/{IMAGE.digest}")
    assert (await proxy.get("/v2/many/manifests/latest")).body == index.manifest
    await proxy.get("/v2/app/tags/list")
    await asyncio.sleep(0.05)
    assert upstream.count(kind="blob") == 0
    assert upstream.count("GET", "manifest") == 1, "no platform's manifest either"


async def test_a_held_manifest_prefetches_nothing(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start()
    await proxy.get(LATEST)
    await proxy.close()
    upstream.clear()
    again = await with_prefetch(start)
    await again.get(LATEST)
    await asyncio.sleep(0.05)
    assert upstream.count(kind="blob") == 0


async def test_prefetching_can_be_switched_off(start: Start, upstream: FakeUpstream) -> None:
    proxy = await with_prefetch(start, **OFF)
    await proxy.get(LATEST)
    await asyncio.sleep(0.05)
    assert upstream.count(kind="blob") == 0


async def test_blobs_and_bytes_of_a_prefetch_are_bounded(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await with_prefetch(start, blobs=3, max_bytes="100KiB")
    await proxy.get(LATEST)
    await until(lambda: len(proxy.held()) == 4)
    await asyncio.sleep(0.05)
    assert proxy.held() == {IMAGE.digest, *BLOBS[:3]}
    upstream.add("library/app", content.image(6, layers=(200_000, 5000)), "other")
    await proxy.get("/v2/app/manifests/other")
    await until(lambda: len(proxy.held()) == 7)
    await asyncio.sleep(0.05)
    assert len(proxy.held()) == 7, "the layer that is too large is left out"


async def test_concurrent_prefetches_are_bounded(start: Start, upstream: FakeUpstream) -> None:
    gate = upstream.hold(kind="blob")
    proxy = await with_prefetch(start, concurrency=2)
    await proxy.get(LATEST)
    await upstream.until(lambda: upstream.count("GET", "blob") == 2)
    await asyncio.sleep(0.05)
    assert upstream.count("GET", "blob") == 2
    gate.set()
    await until(lambda: proxy.held() == {IMAGE.digest, *BLOBS})


@pytest.mark.parametrize("asks_for", [[], BLOBS[:1]], ids=["nothing", "the configuration"])
async def test_a_prefetch_is_abandoned_if_no_layer_is_requested(
    start: Start, upstream: FakeUpstream, asks_for: list[str]
) -> None:
    upstream.stall(1000, kind="blob", reference=BLOBS[3])
    async with nothing_left():
        proxy = await with_prefetch(start, idle_timeout="1500ms")
        await proxy.get("/v2/")
        before = working()
        await proxy.get(LATEST)
        for digest in asks_for:
            assert (await proxy.get(path(digest))).status == 200
        await until(lambda: len(proxy.held()) == len(BLOBS))
        assert len(proxy.stats["downloads"]) >= 1
        await at_rest(proxy, before)
        assert proxy.held() == {IMAGE.digest, *BLOBS} - {BLOBS[3]}, "what has come stays"
        assert counted(proxy)[0] == 4
        assert counted(proxy)[1] >= TOTAL - 300_000
        await proxy.close()


async def test_a_prefetch_continues_once_a_layer_is_requested(
    start: Start, upstream: FakeUpstream
) -> None:
    release = upstream.stall(1000, kind="blob", reference=BLOBS[3])
    proxy = await with_prefetch(start, idle_timeout="1500ms")
    await proxy.get(LATEST)
    assert (await proxy.get(path(BLOBS[1]))).status == 200
    await asyncio.sleep(1.8)
    assert len(proxy.stats["downloads"]) == 1
    release.set()
    await until(lambda: proxy.held() == {IMAGE.digest, *BLOBS})
    assert upstream.count("GET", "blob") == len(BLOBS)


async def test_a_blob_that_a_client_reads_is_not_abandoned(
    start: Start, upstream: FakeUpstream
) -> None:
    release = upstream.stall(10, kind="blob")
    proxy = await with_prefetch(start, idle_timeout="2s")
    await proxy.get(LATEST)
    reading = asyncio.create_task(proxy.get(path(IMAGE.config)))
    await until(lambda: len(proxy.stats["downloads"]) == 1)
    release.set()
    assert (await reading).body == IMAGE.blobs[IMAGE.config]
    assert upstream.count("GET", "blob", IMAGE.config) == 1


@pytest.mark.parametrize(
    "effect",
    [faults.status(503), faults.status(429, retry_after=60), faults.hang_up()],
    ids=["503", "429", "hung up"],
)
async def test_a_failed_prefetch_fails_no_client(
    start: Start, upstream: FakeUpstream, effect: faults.Effect
) -> None:
    gate = upstream.hold(kind="blob", times=len(BLOBS))
    upstream.fault(effect, kind="blob", times=2 * len(BLOBS))  # aiohttp tries a hang-up again
    proxy = await with_prefetch(start)
    await proxy.get(LATEST)
    await upstream.until(lambda: upstream.count("GET", "blob") == len(BLOBS))
    asked = [asyncio.create_task(proxy.get(path(digest))) for digest in BLOBS]
    await until(lambda: readers(proxy) == [2] * len(BLOBS))
    upstream.rules.pop()
    gate.set()
    for digest, answer in zip(BLOBS, await asyncio.gather(*asked), strict=True):
        assert (answer.status, answer.body) == (200, IMAGE.blobs[digest])
    assert proxy.numbers["errors"] == {}


async def test_slots_are_left_for_clients(start: Start, upstream: FakeUpstream) -> None:
    other = content.image(8, layers=(2000,))
    upstream.add("library/app", other, "other")
    gate = upstream.hold(kind="blob", reference=None, repository="library/app")
    proxy = await start(prefetch={}, hub={"max_downloads": 4})
    await proxy.get(LATEST)
    await upstream.until(lambda: upstream.count("GET", "blob") == 2)
    asked = [asyncio.create_task(proxy.get(path(d))) for d in (other.config, other.layers[0])]
    await upstream.until(lambda: upstream.count("GET", "blob") == 4)
    gate.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200, 200]


async def test_a_scarce_rate_limit_stops_prefetching(start: Start, upstream: FakeUpstream) -> None:
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=5)
    proxy = await with_prefetch(start)
    assert (await proxy.get(LATEST)).status == 200
    await asyncio.sleep(0.05)
    assert upstream.count(kind="blob") == 0


async def test_blobs_that_cannot_fit_are_not_prefetched(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(prefetch={}, storage={"max_size": "100KiB"})
    await proxy.get(LATEST)
    await until(lambda: len(proxy.held()) >= 4)
    await proxy.settled()
    assert upstream.count("GET", "blob", BLOBS[3]) == 0
    assert (await proxy.get(path(BLOBS[3]))).body == IMAGE.blobs[BLOBS[3]]
    assert proxy.numbers["through"] == 1


async def test_a_shutdown_during_a_prefetch_leaves_nothing(
    start: Start, upstream: FakeUpstream
) -> None:
    async with nothing_left():
        upstream.stall(10, kind="blob")
        proxy = await with_prefetch(start)
        await proxy.get(LATEST)
        await until(lambda: len(proxy.stats["downloads"]) == len(BLOBS))
        await proxy.close()
    assert not proxy.spooled()
