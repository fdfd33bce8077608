"""Freshness: requests of clients, deleted tags, signatures, slow checks, rate limits."""

import asyncio

import pytest

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import delay, hold
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

OLD, NEW = content.image(1), content.image(2)
LATEST = "/v2/app/manifests/latest"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OLD, tags=["latest"])


async def pull(proxy: Proxy, image: content.Image, ref: str = "latest") -> Answer:
    answer = await proxy.get(f"/v2/app/manifests/{ref}")
    assert (answer.status, answer.body) == (200, image.manifest)
    for digest, data in image.blobs.items():
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == data
    await proxy.settled()
    return answer


async def test_no_cache_checks_at_once(proxy: Proxy, upstream: FakeUpstream) -> None:
    await pull(proxy, OLD)
    upstream.add("library/app", NEW, tags=["latest"])
    assert (await proxy.get(LATEST)).body == OLD.manifest
    assert (await proxy.get(LATEST, Cache_Control="no-cache")).body == NEW.manifest
    assert (await proxy.get(LATEST)).body == NEW.manifest


async def test_only_if_cached_asks_nothing(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    blob = f"/v2/app/blobs/{OLD.layers[0]}"
    held = {"Cache_Control": "only-if-cached"}
    for path in (LATEST, f"/v2/app/manifests/{OLD.digest}", blob):
        for answer in (await proxy.get(path, **held), await proxy.head(path, **held)):
            assert answer.status == 504, path
    assert not upstream.requests
    await pull(proxy, OLD)
    upstream.clear()
    clock.advance(1e7)
    for path in (LATEST, f"/v2/app/manifests/{OLD.digest}", blob):
        for answer in (await proxy.get(path, **held), await proxy.head(path, **held)):
            assert answer.status == 200, path
    assert not upstream.requests


@pytest.mark.parametrize(
    ("policy", "soon", "late"), [("follow", 404, 404), ("keep", 200, 200), ("keep 30d", 200, 404)]
)
async def test_c12_deleted_tags_by_policy(  # noqa: PLR0917 - cases and fixtures
    start: Start, upstream: FakeUpstream, clock: Clock, policy: str, soon: int, late: int
) -> None:
    proxy = await start(freshness={"deleted_tags": policy, "negative_ttl": 0})
    await pull(proxy, OLD)
    upstream.remove_tag("library/app", "latest")
    clock.advance(86400)
    answer = await proxy.get(LATEST)
    assert answer.status == soon
    assert ("no longer" in answer.headers.get("Warning", "")) == (soon == 200)
    clock.advance(30 * 86400)
    assert (await proxy.get(LATEST)).status == late
    assert (await proxy.head(LATEST)).status == late
    assert (await proxy.get(f"/v2/app/manifests/{OLD.digest}")).status == 200


async def test_c17_a_signature_tag_is_checked_often(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    tag = OLD.digest.replace(":", "-") + ".sig"
    upstream.add("library/app", OLD, tags=[tag])
    await pull(proxy, OLD, tag)
    upstream.add("library/app", NEW, tags=[tag])
    clock.advance(31)
    assert (await proxy.get(f"/v2/app/manifests/{tag}")).body == NEW.manifest


async def test_c09_a_slow_check_does_not_delay_a_good_copy(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(timeouts={"check": "200ms"})
    await pull(proxy, OLD)
    upstream.add("library/app", NEW, tags=["latest"])
    gate = asyncio.Event()
    rule = upstream.fault(hold(gate), method="HEAD")
    clock.advance(1e6)
    answer = await proxy.get(LATEST)
    assert answer.body == OLD.manifest, "before the check has ended"
    assert "Warning" in answer.headers
    gate.set()
    async with asyncio.timeout(30):
        while (await proxy.get(LATEST)).body != NEW.manifest:  # the check goes on
            await asyncio.sleep(0.01)
    assert rule.used == 1


async def test_without_a_good_copy_a_client_waits_for_the_check(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(timeouts={"check": "100ms"})
    assert (await proxy.get(LATEST)).status == 200
    upstream.fault(delay(0.4), method="HEAD")
    clock.advance(1e6)
    answer = await proxy.get(LATEST)
    assert (answer.status, "Warning" in answer.headers) == (200, False)


async def test_c02_a_rate_limit_is_shown(proxy: Proxy, upstream: FakeUpstream) -> None:
    assert proxy.numbers["rate_limit"] is None, "absent means unlimited"
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=76, window=21600)
    await pull(proxy, OLD)
    shown = proxy.numbers["rate_limit"]
    assert (shown["limit"], shown["remaining"], shown["window_seconds"]) == (100, 75, 21600)
    metrics = (await proxy.get("/metrics")).body.decode()
    assert 'millpond_upstream_rate_limit_remaining{upstream="docker.io"} 75.0' in metrics
    await pull(proxy, OLD)
    assert (proxy.numbers["pulls_spent"], proxy.numbers["pulls_saved"]) == (1, 1)


async def test_c02_the_reserve_is_kept_for_images_without_a_copy(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"rate_limit_reserve": 0.5})
    upstream.behaviour.rate_limit = RateLimit(limit=10, remaining=5)
    await pull(proxy, OLD)
    upstream.add("library/app", NEW, tags=["latest"])
    upstream.add("library/other", NEW)
    clock.advance(1e6)
    answer = await proxy.get(LATEST)
    assert answer.body == OLD.manifest
    assert "pulls are nearly used up" in answer.headers["Warning"]
    assert (await proxy.get("/v2/other/manifests/latest")).body == NEW.manifest


async def test_c02_at_zero_copies_are_served_and_other_requests_get_a_retry_after(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.behaviour.rate_limit = limit = RateLimit(limit=10, remaining=1, window=3600)
    upstream.add("library/other", NEW)
    await pull(proxy, OLD)
    upstream.clear()
    clock.advance(600)
    answer = await proxy.get("/v2/other/manifests/latest")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "3000")
    assert upstream.count("GET", "manifest") == 0, "a miss asks by HEAD, which is free"
    await pull(proxy, OLD)
    limit.remaining = 10
    assert (await proxy.get("/v2/other/manifests/latest")).body == NEW.manifest


async def test_no_cache_checks_a_cached_absence(proxy: Proxy, upstream: FakeUpstream) -> None:
    blob = content.blob(10, seed=5)
    paths = [
        f"/v2/app/blobs/{content.digest(blob)}",
        f"/v2/app/manifests/{NEW.digest}",
        "/v2/app/manifests/new",
    ]
    for path in paths:
        assert (await proxy.get(path)).status == 404
    upstream.add("library/app", NEW, tags=["new"])
    upstream.add_blob("library/app", blob)
    for path in paths:
        assert (await proxy.get(path)).status == 404
        assert (await proxy.get(path, Cache_Control="no-cache")).status == 200


async def test_only_if_cached_lists_known_tags(proxy: Proxy, upstream: FakeUpstream) -> None:
    held = {"Cache_Control": "only-if-cached"}
    assert (await proxy.get("/v2/app/tags/list", **held)).status == 504
    await pull(proxy, OLD)
    upstream.clear()
    assert b'"latest"' in (await proxy.get("/v2/app/tags/list", **held)).body
    assert not upstream.requests
