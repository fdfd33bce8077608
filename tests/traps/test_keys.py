"""The keys of content, its lifetime, and the parts of an image."""

import asyncio
from collections.abc import Iterable

import pytest

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

ONE = content.image(1)
TWO = content.image(2)
INDEX = content.multi_platform(3, layers=(5000,))
AGES = 1e8


async def pull(proxy: Proxy, name: str, image: content.Content, ref: str = "latest") -> None:
    answer = await proxy.get(f"/v2/{name}/manifests/{ref}")
    assert (answer.status, answer.body) == (200, image.manifest), answer.body
    for child in image.manifests.values():
        answer = await proxy.get(f"/v2/{name}/manifests/{child.digest}")
        assert (answer.status, answer.body) == (200, child.manifest)
    for digest, data in image.blobs.items():
        answer = await proxy.get(f"/v2/{name}/blobs/{digest}")
        assert (answer.status, answer.body) == (200, data)
    await proxy.settled()


async def test_t17_a_digest_is_good_for_ever_and_a_tag_is_not(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.add("library/app", INDEX)
    await pull(proxy, "app", INDEX)
    upstream.clear()
    clock.advance(AGES)
    await pull(proxy, "app", INDEX, INDEX.digest)
    for digest in INDEX.manifests:
        path = f"/v2/app/manifests/{digest}"
        for answer in (await proxy.head(path), await proxy.get(path, Cache_Control="no-cache")):
            assert answer.status == 200
    for digest in INDEX.blobs:
        assert (await proxy.head(f"/v2/app/blobs/{digest}")).status == 200
    assert not upstream.requests
    await pull(proxy, "app", INDEX)
    assert [(r.method, r.reference) for r in upstream.requests] == [("HEAD", "latest")]


async def test_t18_the_same_path_at_two_upstreams_is_two_things(
    start: Start, upstream: FakeUpstream
) -> None:
    async with FakeUpstream() as lab:
        upstream.add("team/app", ONE)
        lab.add("team/app", TWO)
        proxy = await start(upstreams={"lab": {"url": lab.url}})
        for _ in range(2):
            await pull(proxy, "team/app", ONE)
            await pull(proxy, "lab/team/app", TWO)
            assert (await proxy.get("/v2/team/app/manifests/latest?ns=lab")).body == TWO.manifest
        for name, stranger in (("team/app", TWO), ("lab/team/app", ONE)):
            for path in (f"manifests/{stranger.digest}", f"blobs/{stranger.layers[0]}"):
                assert (await proxy.get(f"/v2/{name}/{path}")).status == 404
                assert (await proxy.head(f"/v2/{name}/{path}")).status == 404


async def test_c21_a_name_leads_to_one_upstream_and_never_falls_through(
    start: Start, upstream: FakeUpstream
) -> None:
    async with FakeUpstream() as lab:
        upstream.add("team/app", ONE)
        upstream.add("lab/team/app", ONE)
        proxy = await start(upstreams={"lab": {"url": lab.url}})
        for path in ("/v2/lab/team/app/manifests/latest", "/v2/team/app/manifests/latest?ns=lab"):
            assert (await proxy.get(path)).status == 404
        assert not upstream.requests
        await lab.stop()
        path = "/v2/lab/team/other/manifests/latest"
        assert (await proxy.get(path)).status == 502, "nor when the one upstream is away"
        assert not upstream.requests


def pieces() -> Iterable[str]:
    yield INDEX.digest
    for child in INDEX.children:
        yield child.digest
        yield from child.blobs


async def test_t35_an_image_that_lost_any_part_is_completed(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", INDEX)
    proxy = await start()
    await pull(proxy, "app", INDEX)
    for lost in pieces():
        await proxy.close()
        (proxy.storage / "blobs/sha256" / lost.removeprefix("sha256:")).unlink()
        proxy = await start()
        upstream.clear()
        await pull(proxy, "app", INDEX)
        assert [request.reference for request in upstream.requests] == [lost]


async def test_t35_what_two_repositories_share_lives_as_long_as_one_is_used(
    start: Start, upstream: FakeUpstream
) -> None:
    """Content has no age of its own: using it under any name keeps it."""
    proxy = await start(storage={"max_size": "1MiB"})
    shared = content.image(5, layers=(200_000,))
    upstream.add("team/first", shared)
    upstream.add("team/second", shared)
    await pull(proxy, "team/first", shared)
    await pull(proxy, "team/second", shared)
    for number in range(20):
        filler = upstream.add_blob("library/app", content.blob(100_000, seed=number))
        assert (await proxy.get(f"/v2/app/blobs/{filler}")).status == 200
        await pull(proxy, "team/second", shared)
    assert proxy.stats["cache"]["evictions"] > 10
    assert upstream.bodies(shared.layers[0]) == 1, "used every time, so it stayed"
    upstream.clear()
    await pull(proxy, "team/first", shared)
    assert not upstream.requests


@pytest.mark.parametrize("image", [ONE, INDEX], ids=["image", "index"])
async def test_t40_what_was_pulled_can_be_pulled_again_at_once(
    proxy: Proxy, upstream: FakeUpstream, image: content.Content
) -> None:
    upstream.add("library/app", image)
    paths = ["/v2/app/manifests/latest"]
    paths += [f"/v2/app/manifests/{digest}" for digest in image.manifests]
    paths += [f"/v2/app/blobs/{digest}" for digest in image.blobs]
    for path in paths:
        first = await proxy.get(path)
        assert first.status == 200
        upstream.fail(503)
        again = await proxy.get(path)
        assert (again.status, again.body) == (200, first.body), path
        upstream.heal()


async def test_c04_a_head_of_what_is_arriving_asks_nothing(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", ONE)
    layer = ONE.layers[0]
    path = f"/v2/app/blobs/{layer}"
    release = upstream.stall(100, kind="blob", method="GET")
    asked = asyncio.create_task(proxy.get(path))
    await until(lambda: bool(proxy.stats["downloads"]) and proxy.stats["downloads"][0]["bytes"])
    answer = await proxy.head(path)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(ONE.blobs[layer])))
    assert upstream.count("HEAD") == 0
    release.set()
    assert (await asked).body == ONE.blobs[layer]
