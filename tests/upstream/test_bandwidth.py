"""The limit on bytes per second: exact by a clock, with wide tolerance through a proxy."""

import asyncio
import time
from typing import Any

import pytest

from proxy.upstream import bandwidth
from proxy.upstream.bandwidth import BURST_SECONDS, LARGEST_PIECE, MIN_PIECE, Bandwidth
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Start

IMAGE = content.image(1)
MB = 1_000_000


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[float]:
    """Sleeps that move the clock instead."""
    times: list[float] = []

    async def sleep(seconds: float) -> None:
        times.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr(bandwidth.asyncio, "sleep", sleep)
    return times


async def test_a_debt_is_slept_off(clock: Clock, slept: list[float]) -> None:
    limit = Bandwidth(MB, clock)
    began = clock()
    for _ in range(100):
        await limit.throttle(64_000)
    assert clock() - began == pytest.approx(6.4 - BURST_SECONDS, abs=0.2)


async def test_an_idle_upstream_saves_up_only_a_moment(clock: Clock, slept: list[float]) -> None:
    limit = Bandwidth(MB, clock)
    await limit.throttle(64_000)
    clock.advance(3600)
    slept.clear()
    await limit.throttle(50_000)
    assert not slept, "within the burst"
    await limit.throttle(1_050_000)
    assert sum(slept) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("rate", "piece"), [(1000, MIN_PIECE), (MB, 50_000), (100 * MB, LARGEST_PIECE)]
)
def test_pieces_are_small_beside_the_rate(rate: int, piece: int) -> None:
    assert Bandwidth(rate).piece == piece


async def test_connections_of_a_download_share_its_share() -> None:
    """A download with nine connections gets no more than one with a single connection."""
    limit = Bandwidth(10 * MB)
    paid = {"many": 0, "one": 0}

    async def read(name: str, share: Any) -> None:
        while sum(paid.values()) < 10 * MB:
            await share.throttle(share.piece)
            paid[name] += share.piece

    many, one = limit.share(), limit.share()
    await asyncio.gather(*(read("many", many) for _ in range(9)), read("one", one))
    assert 0.6 < paid["many"] / paid["one"] < 1.7


async def test_downloads_are_limited_and_manifests_are_not(
    start: Start, upstream: FakeUpstream
) -> None:
    size, rate = 2 * MB, 2 * MB
    digests = [upstream.add_blob("library/app", bytes([n]) * size) for n in range(2)]
    upstream.add("library/app", IMAGE)
    proxy = await start(hub={"max_bandwidth": rate})
    began = time.monotonic()
    ended: list[float] = []

    async def pull(digest: str) -> None:
        answer = await proxy.get(f"/v2/app/blobs/{digest}")
        assert (answer.status, len(answer.body)) == (200, size)
        ended.append(time.monotonic() - began)

    pulls = [asyncio.create_task(pull(digest)) for digest in digests]
    await upstream.until(lambda: upstream.count("GET", "blob") == 2)
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    manifest_after = time.monotonic() - began
    await asyncio.gather(*pulls)
    assert ended[-1] >= 2 * size / rate - 0.3, "the limit holds for both together"
    assert ended[0] > 0.7 * ended[-1], "neither overtakes the other"
    assert manifest_after < ended[0]
