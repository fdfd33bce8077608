"""Watched tags: new images are held before a client asks for them."""

import asyncio
import json
from typing import Any

import pytest

from proxy.services import watch as module
from proxy.services.watch import CONCURRENCY
from proxy.settings import Settings
from proxy.upstream.offline import OfflineMode
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.services.test_drop import tree

OLD, NEW, NEWER = content.image("old"), content.image("new"), content.image("newer")
REPO, TAG = "acme/app", "1.2"
MANIFEST = f"/v2/{REPO}/manifests/{TAG}"
FETCHED = "an image was fetched ahead of clients"
NOT_FETCHED = "an image was not fetched ahead of clients"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add(REPO, OLD, TAG)


@pytest.fixture(autouse=True)
def look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the clock, which stands still, every few milliseconds; check without long gaps."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(module, "LONGEST_GAP", 0.005)


def watch(*images: str, **others: Any) -> dict[str, Any]:
    return {"images": [*images], "every": "1s", "referrers": False, **others}


def checks(proxy: Proxy) -> dict[str, int]:
    counted = proxy.app.admin._metrics.cache.watch_checks
    return {outcome: count for outcome, count in counted.items() if count}


def lines(proxy: Proxy, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in proxy.log.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


def passes(proxy: Proxy) -> int:
    return proxy.log.getvalue().count('"watched tags were checked"')


async def passed(proxy: Proxy, clock: Clock) -> None:
    """Return when another pass has ended, and what it wanted was fetched, or could not be."""
    before = passes(proxy)
    clock.now += 2
    await until(lambda: passes(proxy) > before)


async def pulled(proxy: Proxy, *images: content.Image) -> None:
    for image in images:
        for digest in tree(image) - {image.digest}:
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
    await proxy.settled()


async def test_a_moved_tag_is_fetched_whole_without_a_pull(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(watch=watch(f"{REPO}:{TAG}"))
    await passed(proxy, clock)
    await until(lambda: tree(OLD) <= proxy.held())
    upstream.retag(REPO, TAG, NEW)
    await passed(proxy, clock)
    await until(lambda: tree(NEW) <= proxy.held())
    upstream.clear()
    assert (await proxy.get(MANIFEST)).body == NEW.manifest
    assert not upstream.requests
    assert checks(proxy) == {"moved": 2}
    await until(lambda: bool(proxy.stats["cache"]["warmed_images"] == 2))


async def test_a_tag_that_stays_costs_one_head(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(watch=watch(f"{REPO}:{TAG}"))
    await passed(proxy, clock)
    await until(lambda: bool(lines(proxy, FETCHED)))
    upstream.clear()
    await passed(proxy, clock)
    await passed(proxy, clock)
    assert [(one.method, one.kind) for one in upstream.requests] == [("HEAD", "manifest")] * 2
    assert checks(proxy) == {"moved": 1, "unchanged": 2}


async def test_an_image_that_is_held_is_not_fetched_again_after_a_restart(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    before = await start(watch=watch(f"{REPO}:{TAG}"))
    await passed(before, clock)
    await until(lambda: bool(lines(before, FETCHED)))
    await before.close()
    upstream.clear()
    proxy = await start(watch=watch(f"{REPO}:{TAG}"))
    await passed(proxy, clock)
    await passed(proxy, clock)
    assert {one.method for one in upstream.requests} == {"HEAD"}
    assert not lines(proxy, FETCHED)


async def test_an_image_that_was_evicted_is_not_fetched_again(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    """A cache that is too small for all watched images must not fetch them again and again."""
    proxy = await start(watch=watch(f"{REPO}:{TAG}"))
    await passed(proxy, clock)
    await until(lambda: bool(lines(proxy, FETCHED)))
    await proxy.app.content.evictor.evict(10**9)
    assert not proxy.held()
    upstream.clear()
    await passed(proxy, clock)
    await passed(proxy, clock)
    assert {one.method for one in upstream.requests} == {"HEAD"}


@pytest.mark.parametrize(
    ("platforms", "expected"), [([], [0, 1]), (["linux/s390x"], [2]), (["all"], [0, 1, 2])]
)
async def test_the_platforms_are_those_held_before_or_configured(
    start: Start, upstream: FakeUpstream, clock: Clock, platforms: list[str], expected: list[int]
) -> None:
    names = ("linux/amd64", "linux/arm64", "linux/s390x")
    before, after = (content.multi_platform(seed, names) for seed in ("before", "after"))
    upstream.add(REPO, before, TAG)
    proxy = await start(watch=watch("acme/**", platforms=platforms))
    await proxy.get(MANIFEST)
    for child in before.children[:2]:
        await proxy.get(f"/v2/{REPO}/manifests/{child.digest}")
        assert isinstance(child, content.Image)
        await pulled(proxy, child)
    upstream.add(REPO, after, TAG)
    await passed(proxy, clock)
    wanted = {after.digest}.union(*(tree(after.children[place]) for place in expected))
    await until(lambda: wanted <= proxy.held())
    await until(lambda: bool(lines(proxy, FETCHED)))
    assert proxy.held() & tree(after) == wanted


async def test_a_pattern_with_a_tag_selects_what_the_registry_lists(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.add(REPO, NEW, "1.3")
    upstream.add(REPO, NEWER, "2.0")
    proxy = await start(watch=watch(f"{REPO}:1.*"), freshness={"tag_ttl": 0})
    await passed(proxy, clock)
    await until(lambda: tree(OLD) | tree(NEW) <= proxy.held())
    assert not tree(NEWER) & proxy.held()
    upstream.retag(REPO, "1.4", NEWER)
    clock.now += 4000  # the list of tags is cached
    await passed(proxy, clock)
    await passed(proxy, clock)
    await until(lambda: tree(NEWER) <= proxy.held())


async def test_a_pattern_without_a_tag_selects_what_the_cache_knows(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.add(REPO, NEWER, "2.0")
    proxy = await start(watch=watch("acme/**"))
    await passed(proxy, clock)
    assert not upstream.requests
    await proxy.get(MANIFEST)
    upstream.retag(REPO, TAG, NEW)
    await passed(proxy, clock)
    await passed(proxy, clock)
    await until(lambda: tree(NEW) <= proxy.held())
    assert not tree(NEWER) & proxy.held()


async def test_what_a_client_had_checked_lately_is_not_asked_again(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(watch=watch(f"{REPO}:{TAG}", every="2s"))
    await passed(proxy, clock)
    await until(lambda: bool(lines(proxy, FETCHED)))
    upstream.retag(REPO, TAG, NEW)
    clock.now += 1
    assert (await proxy.get(MANIFEST, Cache_Control="no-cache")).body == NEW.manifest
    upstream.clear()
    clock.now += 1.5
    await until(lambda: checks(proxy) == {"moved": 1, "fresh": 1})
    await until(lambda: tree(NEW) <= proxy.held())
    assert upstream.count("HEAD") == 0


async def test_a_young_image_is_fetched_when_it_is_old_enough(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    hub = {"min_age": "1d", "first_seen": "allow"}
    proxy = await start(watch=watch(f"{REPO}:{TAG}"), hub=hub)
    await passed(proxy, clock)
    await until(lambda: tree(OLD) <= proxy.held())
    upstream.retag(REPO, TAG, NEW)
    await passed(proxy, clock)
    await passed(proxy, clock)
    assert not tree(NEW) & proxy.held()
    clock.now += 86400
    await passed(proxy, clock)
    await until(lambda: tree(NEW) <= proxy.held())


async def test_a_registry_that_is_down_is_counted_and_logged_once(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    for number in range(5):
        upstream.add("acme/many", content.image(number), str(number))
    patience = {"retries": 0, "failures": 2, "pause": "1m", "cool_down": 0}
    proxy = await start(watch=watch("acme/**"), patience=patience)
    for number in range(5):
        await proxy.get(f"/v2/acme/many/manifests/{number}")
    upstream.fail(503)
    upstream.clear()
    await passed(proxy, clock)
    assert checks(proxy) == {"failed": 5}
    assert len(lines(proxy, "upstream failed")) == 1
    assert len(upstream.requests) < 5, "the circuit breaker keeps the rest away"
    assert proxy.app.admin._metrics.tasks["watch"].failures == 0
    upstream.heal()


async def test_an_upstream_that_is_offline_is_left_alone(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(watch=watch(f"{REPO}:{TAG}"))
    switch = proxy.app.admin._upstreams["docker.io"].offline
    switch.live = OfflineMode.ALWAYS
    await passed(proxy, clock)
    assert checks(proxy) == {"skipped": 1}
    assert not upstream.requests
    switch.live = None
    await passed(proxy, clock)
    await until(lambda: tree(OLD) <= proxy.held())


async def test_the_last_part_of_a_rate_limit_is_left_to_clients(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(watch=watch(f"{REPO}:{TAG}"), freshness={"rate_limit_reserve": 0.5})
    upstream.behaviour.rate_limit = RateLimit(limit=10, remaining=10, window=3600)
    await passed(proxy, clock)
    await until(lambda: bool(lines(proxy, FETCHED)))
    upstream.behaviour.rate_limit.remaining = 5
    upstream.retag(REPO, TAG, NEW)
    upstream.add("other/app", NEWER)
    await proxy.get("/v2/other/app/manifests/latest")
    upstream.clear()
    await passed(proxy, clock)
    assert checks(proxy) == {"moved": 1, "deferred": 1}
    assert not upstream.requests
    upstream.behaviour.rate_limit = None
    clock.now += 3600
    await passed(proxy, clock)
    await until(lambda: tree(NEW) <= proxy.held())


async def test_an_upstream_that_is_asked_as_its_clients_is_left_alone(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(watch=watch(f"{REPO}:{TAG}"), hub={"credentials": "caller"})
    await passed(proxy, clock)
    assert checks(proxy) == {"skipped": 1}
    assert not upstream.requests


async def test_a_deleted_tag_is_followed(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(watch=watch("acme/**"))
    await proxy.get(MANIFEST)
    upstream.remove_tag(REPO, TAG)
    await passed(proxy, clock)
    assert checks(proxy) == {"gone": 1}
    await passed(proxy, clock)
    assert checks(proxy) == {"gone": 1}, "it is no longer known"


async def test_so_many_checks_run_at_a_time(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    tags = [str(number) for number in range(4 * CONCURRENCY)]
    upstream.add("acme/many", OLD, tags)
    proxy = await start(watch=watch("acme/many:*"))
    gate = upstream.hold(method="HEAD")
    clock.now += 2
    await upstream.until(lambda: upstream.count("HEAD") == CONCURRENCY, timeout=30)
    await asyncio.sleep(0.2)
    clock.now += 60
    await asyncio.sleep(0.2)
    assert upstream.count("HEAD") == CONCURRENCY
    gate.set()
    await until(lambda: sum(checks(proxy).values()) >= len(tags))


async def test_an_image_that_cannot_be_fetched_is_tried_again_and_logged_once(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.fail(500, kind="blob", reference=OLD.layers[0])
    proxy = await start(watch=watch(f"{REPO}:{TAG}"))
    for count in (1, 2):
        await passed(proxy, clock)
        await until(lambda: proxy.stats["cache"]["warm_failures"] >= count)  # noqa: B023
    assert len(lines(proxy, NOT_FETCHED)) == 1
    upstream.heal()
    await passed(proxy, clock)
    await until(lambda: tree(OLD) <= proxy.held())


async def test_referrers_come_along(start: Start, upstream: FakeUpstream, clock: Clock) -> None:
    signature = content.artifact(OLD)
    upstream.add(REPO, signature, [])
    proxy = await start(watch=watch(f"{REPO}:{TAG}", referrers=True))
    await passed(proxy, clock)
    await until(lambda: tree(OLD, signature) <= proxy.held())


async def test_a_reload_watches_other_tags(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start()
    settings = {
        "upstreams": {"docker.io": {"url": upstream.url}},
        "watch": watch(f"{REPO}:{TAG}"),
        "log": {"level": "debug"},
    }
    await proxy.app.reload(Settings.model_validate(settings))
    await passed(proxy, clock)
    await until(lambda: tree(OLD) <= proxy.held())
    await proxy.app.reload(Settings.model_validate(settings | {"watch": []}))
    upstream.clear()
    clock.now += 100
    await asyncio.sleep(0.5)
    assert not upstream.requests


async def test_without_a_catalog_the_log_says_once_that_a_pattern_may_select_more(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.fail(404, kind="catalog")
    proxy = await start(watch=watch("acme/*:*"))
    await passed(proxy, clock)
    await passed(proxy, clock)
    assert len(lines(proxy, "a pattern may select more")) == 1
