"""Stale answers: which copy stands in for an upstream that fails, and which must not."""

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
        assert "not all of this image is held" in answer.headers["Warning"]
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


async def test_t64_offline_an_image_that_is_not_whole_stays_refused(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    online = await start()
    assert (await online.get(LATEST)).status == 200
    await online.close()
    clock.advance(LONG)
    offline = await start(offline=True)
    for answer in (await offline.get(LATEST), await offline.head(LATEST)):
        assert answer.status == 404, "Podman and CRI-O would ask nowhere else for its layers"


async def test_t64_a_deleted_tag_that_is_kept_needs_no_layers_here(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"deleted_tags": "keep"})
    assert (await proxy.get(LATEST)).status == 200
    upstream.remove_tag("library/app", "latest")
    clock.advance(LONG)
    answer = await proxy.get(LATEST)
    assert (answer.status, answer.body) == (200, OLD.manifest)
    assert "no longer has this tag" in answer.headers["Warning"]


async def test_t64_a_manifest_that_only_another_repository_holds_does_not_stand_in(
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


async def test_a_tag_that_upstream_dropped_does_not_come_back_when_upstream_fails(
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


async def test_a_tag_dropped_behind_the_clients_back_does_not_come_back(
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


async def test_a_tag_dropped_together_with_its_image_does_not_come_back_as_an_older_one(
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


async def test_a_slow_check_does_not_overwrite_what_a_newer_get_has_learnt(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
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
    assert (await proxy.head(LATEST)).headers["Docker-Content-Digest"] == NEW.digest


async def test_a_slow_check_does_not_drop_a_tag_that_came_back(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    clock.advance(301)
    upstream.remove_tag("library/app", "latest")
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
    upstream.fail(503)
    answer = await proxy.head(LATEST)
    assert (answer.status, "Warning" in answer.headers) == (200, False)
    assert answer.headers["Docker-Content-Digest"] == NEW.digest


@pytest.mark.parametrize("path", ["manifests/later", f"blobs/{NEW.layers[0]}"])
async def test_an_absence_is_believed_for_its_ttl_and_no_longer(
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
