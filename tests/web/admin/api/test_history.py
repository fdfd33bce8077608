"""Samples over time: their sums, over restarts, and in which resolution."""

import pytest

from proxy.services.series import Sample, Series, Tier
from tests.fakes.clock import Clock
from tests.running import Proxy, Start
from tests.web.admin.api.client import ApiClient, Document, described

HOUR, DAY = 3600, 86400


def series(proxy: Proxy) -> Series:
    return proxy.app.operator_api.series


def total(document: Document, name: str = "requests") -> int:
    return sum(point[name] for point in document["points"])


async def test_points_have_what_was_counted(proxy: Proxy, anybody: ApiClient, clock: Clock) -> None:
    await proxy.get("/v2/app/manifests/latest")
    first = await anybody.get("series")
    [point] = first["points"]
    assert first["step"] == 30
    assert point["requests"] == point["pulls_spent"] == 1
    assert point["hits"] == point["errors"] == 0
    assert point["client_bytes"] == point["upstream_bytes"] > 0
    assert point["cache_bytes"] > 0
    clock.advance(60)
    await proxy.get("/v2/app/manifests/latest", Cache_Control="no-cache")
    await proxy.get("/v2/app/manifests/none")
    points = (await anybody.get("series"))["points"]
    assert [one["requests"] for one in points] == [1, 2]
    assert [one["hits"] for one in points] == [0, 1], "a confirmed copy needs no body of its own"
    assert points[1]["errors"] == 1
    assert points[1]["time"] - points[0]["time"] == 60


async def test_the_step_fits_the_time_and_the_number_of_points(
    proxy: Proxy, anybody: ApiClient, clock: Clock
) -> None:
    now = clock()
    await series(proxy).load()
    for ago in (40 * DAY, 30 * HOUR, HOUR // 2, 0):
        clock.now = now - ago
        await proxy.get("/v2/app/tags/list")
        series(proxy).sample()
    for since, points, step, requests in (
        (HOUR, 360, 10, 2),
        (HOUR, 10, 360, 2),
        (2 * DAY - HOUR, 2000, 120, 3),
        (50 * DAY, 2000, 2700, 4),
        (10_000 * DAY, 60, 86400, 4),
    ):
        found = await anybody.get("series", since=now - since, points=points)
        assert (found["step"], total(found)) == (step, requests), (since, points)
        assert len(found["points"]) <= points
        assert found["start"] % step == 0
        assert all(one["time"] % step == 0 for one in found["points"])


async def test_samples_survive_a_restart(start: Start, clock: Clock) -> None:
    proxy = await start()
    for _ in range(3):
        await proxy.get("/v2/app/tags/list")
    before = await (await described(proxy.client)).get("series", since=0)
    await proxy.close()
    again = await start()
    client = await described(again.client)
    assert (await client.get("stats"))["total"]["requests"] == 0
    after = await client.get("series", since=0)
    assert total(after) == total(before) == 3
    await again.get("/v2/app/tags/list")
    assert total(await client.get("series", since=0)) == 4, "in the same minute"
    await again.close()
    clock.advance(61 * DAY)
    client = await described((await start()).client)
    assert total(await client.get("series", since=0)) == 0, "too old"


async def test_notes_that_nobody_wrote_are_left_out(proxy: Proxy, clock: Clock) -> None:
    tier = Tier(60, 10, 5)
    newest = int(clock() // 60)
    good = [newest, *Sample(requests=7)]
    bad = [[], None, [newest + 5, *Sample(1)], [newest - 10, *Sample(1)], [newest, -1], ["x"] * 8]
    tier.load([*bad, good], clock())
    assert tier.samples == {newest: Sample(requests=7)}


def test_the_names_of_notes_are_bounded() -> None:
    tier = Tier(60, 2880, 60)
    names = {tier.note(float(hour * HOUR))[0] for hour in range(5000)}
    assert names == set(tier.notes(0.0)) == set(tier.notes(123456.0))
    assert len(names) == 49


async def test_a_sample_that_is_too_old_is_forgotten() -> None:
    tier = Tier(10, 3)
    for second in range(0, 100, 10):
        tier.add(float(second), Sample(requests=1))
    assert sorted(tier.samples) == [7, 8, 9]


@pytest.mark.parametrize("query", [{"points": 0}, {"points": 10**6}, {"since": "x"}])
async def test_wrong_parameters_get_400(anybody: ApiClient, query: dict[str, str]) -> None:
    assert (await anybody.ask("GET", "series", **query)).status == 400
