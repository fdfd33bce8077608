"""Schedules: images are fetched at their time, and the log names missing ones."""

import asyncio
import json
from datetime import datetime
from typing import Any

import pytest

from proxy.services.warm import next_time
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.services.test_drop import tree

ONE, TWO = content.image("one"), content.image("two")
SIGNATURE = content.artifact(ONE)
MANY = content.multi_platform("many", ("linux/amd64", "linux/s390x"))


def unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("acme/one", ONE, tags=["1", "2"])
    upstream.add("acme/one", SIGNATURE, tags=[])
    upstream.add("acme/two", TWO, tags=["1"])
    upstream.add("acme/many", MANY, tags=["latest"])


def entry(*images: str, **others: Any) -> dict[str, Any]:
    return {"images": [*images], "schedule": "0 3 * * *", **others}


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("0 3 * * *", "2026-11-22 02:59:59", "2026-11-22 03:00"),
        ("0 3 * * *", "2026-11-22 03:00:00", "2026-11-23 03:00"),
        ("*/15 8-17 * * 1-5", "2026-11-20 17:50", "2026-11-23 08:00"),
        ("30 4 1 * *", "2026-11-22 00:00", "2026-12-01 04:30"),
    ],
)
def test_the_next_time_is_after_now(schedule: str, after: str, expected: str) -> None:
    assert next_time(schedule, unix(after)) == unix(expected)


async def test_images_are_fetched_at_their_time_and_not_before(
    start: Start, clock: Clock, upstream: FakeUpstream
) -> None:
    clock.now = unix("2026-11-22 02:59:59.95")
    proxy = await start(warm=[entry("acme/one:1")])
    await asyncio.sleep(0.2)
    assert not upstream.requests
    clock.now += 0.1
    await until(lambda: proxy.held() == tree(ONE, SIGNATURE))
    await until(lambda: proxy.stats["cache"]["warmed_images"] == 1)
    upstream.clear()
    clock.now += 3600
    await asyncio.sleep(0.2)
    assert not upstream.requests, "the next time is tomorrow"


def warmed(proxy: Proxy) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in proxy.log.getvalue().splitlines()]
    return [line for line in lines if line["event"] in ("warmed", "an image could not be warmed")]


async def at_three(start: Start, clock: Clock, *entries: dict[str, Any], **settings: Any) -> Proxy:
    """Start a proxy at the time of its schedules; return it when the first has ended."""
    clock.now = unix("2026-11-22 02:59:59.95")
    proxy = await start(warm=[*entries], **settings)
    clock.now += 0.1
    await until(lambda: any(line["event"] == "warmed" for line in warmed(proxy)))
    return proxy


async def test_patterns_platforms_and_referrers(start: Start, clock: Clock) -> None:
    wanted = entry("acme/*:*", platforms=["linux/s390x"], referrers=False)
    proxy = await at_three(start, clock, wanted)
    assert proxy.held() == tree(ONE, TWO, MANY.children[1]) | {MANY.digest}
    [done] = warmed(proxy)
    assert (done["whole"], done["incomplete"]) == (4, 0)


async def test_all_platforms(start: Start, clock: Clock) -> None:
    proxy = await at_three(start, clock, entry("acme/many", platforms=["all"]))
    assert proxy.held() == tree(MANY)


async def test_patterns_that_cannot_be_expanded_are_logged_and_counted(
    start: Start, clock: Clock, upstream: FakeUpstream
) -> None:
    upstream.fail(status=500, kind="tags", repository="acme/two")
    proxy = await at_three(start, clock, entry("acme/*:*", "none/*", referrers=False))
    *problems, done = warmed(proxy)
    assert sorted(problem["reason"].partition(" answers ")[0] for problem in problems) == [
        "acme/*:*: docker.io/acme/two: docker.io",
        "none/*: selects no image",
    ]
    assert (done["whole"], done["incomplete"]) == (3, 2)


async def test_missing_images_are_logged_and_counted_and_the_rest_is_fetched(
    start: Start, clock: Clock, upstream: FakeUpstream
) -> None:
    upstream.fail(status=500, kind="blob", reference=TWO.layers[0])
    proxy = await at_three(start, clock, entry("acme/none", "acme/two:1", "acme/one:1"))
    assert proxy.held() == tree(ONE, TWO, SIGNATURE) - {TWO.layers[0]}
    *problems, done = warmed(proxy)
    reasons = sorted(problem["reason"] for problem in problems)
    assert reasons[0].startswith("acme/none: docker.io/acme/none:latest: ")
    assert reasons[1].startswith(f"acme/two:1: {TWO.layers[0]}: ")
    assert (done["whole"], done["incomplete"]) == (1, 2)
    counters = proxy.stats["cache"]
    assert (counters["warmed_images"], counters["warm_failures"]) == (1, 2)
