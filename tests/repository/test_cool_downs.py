"""Tags that moved lately stay at the older image, on every path."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.core.cool_down import show_time
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.content import Image
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start
from tests.web.admin.test_actions import Operator

DAY = 86400.0
LATEST = "/v2/app/manifests/latest"
HELD: dict[str, Any] = {"hub": {"min_age": "3d"}}


def created(seed: int, moment: float | None) -> Image:
    """Return an image whose configuration says when it was created."""
    config: dict[str, object] = {"architecture": "amd64", "os": "linux", "seed": seed}
    if moment is not None:
        config["created"] = show_time(moment)
    body = json.dumps(config).encode()
    old = content.image(seed)
    document = json.loads(old.manifest)
    document["config"] |= {"digest": content.digest(body), "size": len(body)}
    blobs = {name: data for name, data in old.blobs.items() if name != old.config}
    manifest = json.dumps(document).encode()
    return replace(old, manifest=manifest, blobs=blobs | {content.digest(body): body})


@pytest.fixture
def old(clock: Clock) -> Image:
    return created(1, clock() - 30 * DAY)


@pytest.fixture
def new(clock: Clock) -> Image:
    return created(2, clock() + DAY)


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream, old: Image) -> None:
    upstream.add("library/app", old, tags=["latest"])


async def moved(proxy: Proxy, upstream: FakeUpstream, clock: Clock, new: Image) -> str:
    """Have the tag seen with the old image, then move it; return until when it is held."""
    assert (await proxy.get(LATEST)).status == 200
    clock.advance(DAY)
    upstream.add("library/app", new, tags=["latest"])
    return f"held until {show_time(clock() + 3 * DAY)}"


async def test_a_tag_that_moved_stays_for_as_long_as_configured(
    start: Start, upstream: FakeUpstream, clock: Clock, old: Image, new: Image
) -> None:
    proxy = await start(**HELD)
    until = await moved(proxy, upstream, clock, new)
    for answer in (await proxy.get(LATEST), await proxy.head(LATEST), await proxy.get(LATEST)):
        assert answer.headers["Docker-Content-Digest"] == old.digest
        assert until in answer.headers["Cache-Status"]
    assert "tag held" in proxy.log.getvalue()
    clock.advance(2 * DAY)
    assert (await proxy.get(LATEST)).body == old.manifest
    clock.advance(DAY + 1)
    answer = await proxy.get(LATEST)
    assert answer.body == new.manifest
    assert "held" not in answer.headers["Cache-Status"]


async def test_a_fresh_digest_is_refused_until_its_tag_follows(
    start: Start, upstream: FakeUpstream, clock: Clock, new: Image, old: Image
) -> None:
    proxy = await start(**HELD)
    until = await moved(proxy, upstream, clock, new)
    await proxy.get(LATEST)
    direct = f"/v2/app/manifests/{new.digest}"
    for _ in range(3):  # the third may come from the response cache
        answer = await proxy.get(direct)
        assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (403, "DENIED")
        assert until.encode() in answer.body
        assert until in answer.headers["Cache-Status"]
    assert (await proxy.head(direct)).status == 403
    for _ in range(3):  # the fresh manifest is in memory now
        assert (await proxy.get(LATEST)).body == old.manifest
    assert (await proxy.get(f"/v2/app/manifests/{old.digest}")).status == 200
    clock.advance(3 * DAY + 1)
    await proxy.get(LATEST)
    assert (await proxy.get(direct)).body == new.manifest


@pytest.mark.parametrize("first_seen", [None, "allow", "deny"])
@pytest.mark.parametrize("age", [1, 30, None])
async def test_the_first_sight_of_a_tag(
    start: Start, upstream: FakeUpstream, clock: Clock, first_seen: str | None, age: float | None
) -> None:
    image = created(5, None if age is None else clock() - age * DAY)
    upstream.add("library/app", image, tags=["first"])
    proxy = await start(hub={"min_age": "3d", "first_seen": first_seen})
    allowed = first_seen == "allow" or (first_seen is None and age == 30)
    for answer in (
        await proxy.get("/v2/app/manifests/first"),
        await proxy.head("/v2/app/manifests/first"),
        await proxy.get(f"/v2/app/manifests/{image.digest}"),
    ):
        assert answer.status == (200 if allowed else 403)
    clock.advance(3 * DAY + 1)
    assert (await proxy.get("/v2/app/manifests/first")).status == 200


async def test_a_head_first(start: Start, upstream: FakeUpstream, old: Image) -> None:
    proxy = await start(**HELD)
    answer = await proxy.head(LATEST)
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, old.digest)


async def test_it_holds_while_upstream_fails_and_after_a_restart(
    start: Start, upstream: FakeUpstream, clock: Clock, old: Image, new: Image
) -> None:
    proxy = await start(**HELD)
    await moved(proxy, upstream, clock, new)
    await proxy.get(LATEST)
    for digest in old.blobs:
        await proxy.get(f"/v2/app/blobs/{digest}")
    await proxy.settled()
    clock.advance(DAY)
    upstream.fail(503)
    answer = await proxy.get(LATEST)
    assert (answer.status, answer.body) == (200, old.manifest)
    assert "held until" in answer.headers["Cache-Status"]
    await proxy.close()
    upstream.heal()
    again = await start(**HELD)
    assert (await again.get(LATEST)).body == old.manifest
    assert (await again.get(f"/v2/app/manifests/{new.digest}")).status == 403


async def test_an_image_within_a_held_index_is_held(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    child = created(7, clock() - 30 * DAY)
    index = content.index(child)
    proxy = await start(hub={"min_age": "3d", "first_seen": "allow"})
    await proxy.get(LATEST)
    clock.advance(DAY)
    upstream.add("library/app", index, tags=["latest"])
    await proxy.get(LATEST)
    await proxy.get(f"/v2/app/manifests/{index.digest}")
    assert (await proxy.get(f"/v2/app/manifests/{child.digest}")).status == 403
    clock.advance(3 * DAY + 1)
    assert (await proxy.get(LATEST)).body == index.manifest
    assert (await proxy.get(f"/v2/app/manifests/{child.digest}")).status == 200


async def test_an_index_of_another_repository_holds_nothing_here(
    start: Start, upstream: FakeUpstream, clock: Clock, new: Image
) -> None:
    child = created(7, clock() - 30 * DAY)
    upstream.add("library/app", child, tags=["other"])
    upstream.add("org/else", content.index(child, new), tags=["latest"])
    proxy = await start(hub={"min_age": "3d", "min_age_except": ["org/else"]})
    assert (await proxy.get("/v2/org/else/manifests/latest")).status == 200
    assert (await proxy.get(f"/v2/app/manifests/{child.digest}")).body == child.manifest


async def test_an_attached_artifact_is_served_and_an_attached_image_or_index_is_judged(
    start: Start, upstream: FakeUpstream, old: Image, new: Image
) -> None:
    subject = {"subject": old.descriptor}
    image = replace(new, manifest=json.dumps(json.loads(new.manifest) | subject).encode())
    document = json.loads(image.manifest)
    document["config"]["mediaType"] = "application/vnd.dev.cosign.artifact.sig.v1+json"
    signature = replace(new, manifest=json.dumps(document).encode())
    index = content.index(new)
    index = replace(index, manifest=json.dumps(json.loads(index.manifest) | subject).encode())
    upstream.add("library/app", signature, tags=[])
    upstream.add("library/app", image, tags=[])
    upstream.add("library/app", index, tags=[])
    proxy = await start(**HELD)
    assert (await proxy.get(f"/v2/app/manifests/{signature.digest}")).status == 200
    assert (await proxy.get(f"/v2/app/manifests/{image.digest}")).status == 403
    assert (await proxy.get(f"/v2/app/manifests/{index.digest}")).status == 403


@pytest.mark.parametrize(
    "hub",
    [
        {"min_age": "3d", "min_age_except": ["app"]},
        {"min_age": "3d", "min_age_except": ["docker.io/library/*:latest"]},
        {"min_age": "3d", "tag_rules": [{"images": ["library/**"], "min_age": 0}]},
        {"tag_rules": [{"images": ["acme/**"], "min_age": "3d"}]},
    ],
)
async def test_exceptions_follow_at_once(
    start: Start, upstream: FakeUpstream, clock: Clock, new: Image, hub: dict[str, Any]
) -> None:
    proxy = await start(hub=hub)
    await moved(proxy, upstream, clock, new)
    assert (await proxy.get(LATEST)).body == new.manifest
    assert (await proxy.get(f"/v2/app/manifests/{new.digest}")).body == new.manifest


async def test_pull_and_ls_say_it(
    start: Start, upstream: FakeUpstream, clock: Clock, old: Image, new: Image
) -> None:
    proxy = await start(**HELD)
    await moved(proxy, upstream, clock, new)
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        operator = Operator(session)
        *_, done = await operator.lines("POST", "pull", image="app:latest", platforms="")
        assert (done["digest"], done["missing"]) == (old.digest, 0)
        name = f"app@{new.digest}"
        *_, missing, done = await operator.lines("POST", "pull", image=name, platforms="")
        assert (done["digest"], done["missing"]) == (None, 1)
        assert "held until" in missing["reason"]
        [listed] = await operator.lines("GET", "images")
        assert listed["held_until"] == clock() + 3 * DAY


async def pulled(proxy: Proxy, *images: Image) -> None:
    assert (await proxy.get(LATEST)).status == 200
    for image in images:
        for digest in image.blobs:
            assert (await proxy.get(f"/v2/app/blobs/{digest}")).status == 200
    await proxy.settled()


async def evict_all_but(proxy: Proxy, image: Image) -> None:
    """Evict all that may be, as soon as the pins protect an image."""
    pins = proxy.app.admin._actions.pins
    async with asyncio.timeout(20):
        while image.digest not in await pins.protected():
            await asyncio.sleep(0.01)
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        await Operator(session).told("POST", "evict", bytes="1TiB")
    assert proxy.held() == {image.digest, *image.blobs}


@pytest.mark.parametrize("pin", ["app", "docker.io/library/*"])
async def test_a_pin_protects_what_clients_get(
    start: Start, upstream: FakeUpstream, clock: Clock, old: Image, new: Image, *, pin: str
) -> None:
    proxy = await start(**HELD, pins=[pin])
    await moved(proxy, upstream, clock, new)
    await pulled(proxy, old, new)
    await evict_all_but(proxy, old)
    clock.advance(3 * DAY + 1)
    await pulled(proxy, new)
    await evict_all_but(proxy, new)


async def test_a_pin_on_a_tag_that_moved_back_in_time_protects_what_clients_get(
    start: Start, upstream: FakeUpstream, clock: Clock, old: Image, new: Image
) -> None:
    proxy = await start(pins=["app"])
    await pulled(proxy, old)
    day = show_time(clock() + DAY / 2)
    await moved(proxy, upstream, clock, new)
    await pulled(proxy, new)
    await proxy.close()
    proxy = await start(pins=["app"], hub={"as_of": day})
    await pulled(proxy, old)
    await evict_all_but(proxy, old)


async def test_a_pin_protects_both_images_while_only_their_age_can_decide(
    start: Start, upstream: FakeUpstream, clock: Clock, old: Image, new: Image
) -> None:
    """The tag moved an hour after it was first seen, and the process has been restarted."""
    proxy = await start(**HELD, pins=["app"])
    assert (await proxy.get(LATEST)).status == 200
    clock.advance(3600)
    upstream.add("library/app", new, tags=["latest"])
    assert (await proxy.get(LATEST)).body == old.manifest
    await proxy.close()
    proxy = await start(**HELD, pins=["app"], offline=True)
    assert {old.digest, new.digest} <= await proxy.app.admin._actions.pins.protected()
