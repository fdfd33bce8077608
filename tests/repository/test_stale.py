"""Stale answers: which copies replace the answer of an upstream that fails."""

import asyncio

import pytest

from proxy.core.names import Digest, Repo, Tag, Target
from proxy.core.records import Descriptor, TagRecord
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

OLD, NEW = content.image(1), content.image(2)
LATEST = "/v2/app/manifests/latest"
LONG = 1e7


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OLD, tags=["latest"])


async def pull(proxy: Proxy, image: content.Image, ref: str = "latest") -> None:
    answer = await proxy.get(f"/v2/app/manifests/{ref}")
    assert (answer.status, answer.body) == (200, image.manifest)
    for digest, data in image.blobs.items():
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == data
    await proxy.settled()


async def idle(name: str) -> None:
    """Return once no task of this name runs."""
    await until(lambda: not any(t.get_name().startswith(name) for t in asyncio.all_tasks()))


@pytest.mark.parametrize("failure", [503, 429, None], ids=["503", "429", "unreachable"])
async def test_t64_a_held_manifest_is_served_although_its_layers_are_not_held(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock, failure: int | None
) -> None:
    assert (await proxy.get(LATEST)).body == OLD.manifest
    clock.advance(LONG)
    if failure is None:
        await upstream.stop()
    else:
        upstream.fail(failure)
    got, described = await proxy.get(LATEST), await proxy.head(LATEST)
    assert got.body == OLD.manifest
    for answer in (got, described):
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == OLD.digest
        assert "incomplete in the cache" in answer.headers["Warning"]
    blob = await proxy.get(f"/v2/app/blobs/{OLD.layers[0]}")
    assert blob.status in {502, 429}, "clients go elsewhere for what is not held"


async def test_t64_a_tag_never_goes_back_to_an_older_image_while_the_newer_one_is_held(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    upstream.add("library/app", NEW, tags=["latest"])
    clock.advance(LONG)
    assert (await proxy.get(LATEST)).body == NEW.manifest
    upstream.fail(503)
    clock.advance(LONG)
    answer = await proxy.get(LATEST)
    assert answer.body == NEW.manifest, "nodes that run the new image must not be set back"
    assert "Warning" in answer.headers


async def test_t64_offline_an_incomplete_image_is_refused(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    online = await start()
    assert (await online.get(LATEST)).status == 200
    await online.close()
    clock.advance(LONG)
    offline = await start(offline=True)
    for answer in (await offline.get(LATEST), await offline.head(LATEST)):
        assert answer.status == 404, "Podman and CRI-O would ask nowhere else for its layers"


async def test_offline_an_incomplete_image_keeps_its_tag(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    kept = {"deleted_tags": "keep"}
    for freshness in ({}, kept):
        online = await start(freshness=freshness)
        assert (await online.get(LATEST)).status == 200
        await online.close()
        offline = await start(offline=True, freshness=freshness)
        assert (await offline.get(LATEST)).status == 404
        await offline.close()
    upstream.fail(503)
    clock.advance(LONG)
    assert (await (await start()).get(LATEST)).body == OLD.manifest


async def test_t64_a_kept_deleted_tag_is_served_without_layers(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"deleted_tags": "keep"})
    assert (await proxy.get(LATEST)).status == 200
    upstream.remove_tag("library/app", "latest")
    clock.advance(LONG)
    answer = await proxy.get(LATEST)
    assert (answer.status, answer.body) == (200, OLD.manifest)
    assert "no longer has this tag" in answer.headers["Warning"]


async def test_t64_a_manifest_of_another_repository_is_not_served_instead(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.add("team/secret", NEW)
    assert (await proxy.get("/v2/team/secret/manifests/latest")).status == 200
    descriptor = Descriptor(NEW.media_type, Digest(NEW.digest), len(NEW.manifest))
    target = Target("docker.io", Repo("library/app"))
    await proxy.app.content.tags.set(target, Tag("latest"), TagRecord(descriptor, clock()))
    clock.advance(LONG)
    upstream.fail(503)
    assert (await proxy.get(LATEST)).status == 502


async def test_a_tag_deleted_upstream_stays_deleted_when_upstream_fails(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"negative_ttl": 0})
    await pull(proxy, OLD)
    upstream.remove_tag("library/app", "latest")
    clock.advance(LONG)
    assert (await proxy.get(LATEST)).status == 404
    upstream.fail(503)
    for answer in (await proxy.get(LATEST), await proxy.head(LATEST)):
        assert answer.status == 502
    await proxy.close()
    proxy = await start(freshness={"negative_ttl": 0})
    assert (await proxy.get(LATEST)).status == 502, "a restart does not bring it back either"


async def test_a_tag_deleted_by_a_background_check_stays_deleted(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"negative_ttl": 0})
    await pull(proxy, OLD)
    upstream.remove_tag("library/app", "latest")
    clock.advance(301)
    assert (await proxy.get(LATEST)).status == 200, "answered at once, checked in the background"
    await idle("refresh tag")
    upstream.fail(503)
    assert (await proxy.get(LATEST)).status == 502


async def test_a_tag_deleted_with_its_image_is_not_replaced_by_an_older_image(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"negative_ttl": 0})
    await pull(proxy, OLD)
    upstream.add("library/app", NEW, tags=["latest"])
    clock.advance(LONG)
    assert (await proxy.head(LATEST)).headers["Docker-Content-Digest"] == NEW.digest
    upstream.remove_tag("library/app", "latest")
    upstream.remove("library/app", NEW.digest)
    assert (await proxy.get(LATEST)).status == 404, "inside its TTL, but its manifest is gone"
    upstream.fail(503)
    for answer in (await proxy.get(LATEST), await proxy.head(LATEST)):
        assert answer.status == 502


async def overtake_check(proxy: Proxy, upstream: FakeUpstream, clock: Clock) -> None:
    """Have a GET record the new image while a check of the tag waits for the registry."""
    clock.advance(301)
    gate = upstream.hold(method="HEAD", reference="latest")
    assert (await proxy.get(LATEST)).body == OLD.manifest
    await upstream.until(lambda: upstream.count("HEAD") == 1)
    upstream.add("library/app", NEW, tags=["latest"])
    upstream.remove("library/app", OLD.digest)
    await proxy.app.content.evictor.discard([Digest(OLD.digest)])
    assert (await proxy.get(LATEST)).body == NEW.manifest
    gate.set()
    await idle("check tag")
    await idle("refresh tag")


async def test_the_newest_complete_image_replaces_one_that_was_lost(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    latest = content.image(3)
    for image in (OLD, NEW, latest):
        upstream.add("library/app", image, tags=["latest"])
        await pull(proxy, image)
        clock.advance(LONG)
    await proxy.app.content.evictor.discard([Digest(latest.digest)])
    upstream.fail(503)
    assert (await proxy.get(LATEST)).body == NEW.manifest


async def test_a_slow_check_does_not_overwrite_the_result_of_a_later_get(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    await overtake_check(proxy, upstream, clock)
    assert (await proxy.head(LATEST)).headers["Docker-Content-Digest"] == NEW.digest


async def test_a_slow_check_does_not_drop_a_tag_that_exists_again(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    upstream.remove_tag("library/app", "latest")
    await overtake_check(proxy, upstream, clock)
    upstream.fail(503)
    answer = await proxy.head(LATEST)
    assert (answer.status, "Warning" in answer.headers) == (200, False)
    assert answer.headers["Docker-Content-Digest"] == NEW.digest


@pytest.mark.parametrize("path", ["manifests/later", f"blobs/{NEW.layers[0]}"])
async def test_an_absence_is_cached_for_its_ttl(
    start: Start, upstream: FakeUpstream, path: str
) -> None:
    proxy = await start(freshness={"negative_ttl": "1s"})
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await proxy.get(f"/v2/app/{path}")).status == 404
    upstream.add("library/app", NEW, tags=["later"])
    async with asyncio.timeout(15):
        while (await proxy.get(f"/v2/app/{path}")).status != 200:
            await asyncio.sleep(0.05)
    assert loop.time() - began >= 1
