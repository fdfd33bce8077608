"""Pulling and refreshing through the running proxy: whole images, without a client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.core import manifests
from proxy.services.pull import Platforms
from tests.fakes import content
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start
from tests.services.test_drop import tree
from tests.web.admin.test_actions import Operator

ONE, TWO = content.image("one"), content.image("two")
INDEX = content.multi_platform("i", ("linux/amd64", "linux/arm64/v8", "linux/arm/v7"))
NESTED = content.nested_index("n")


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", ONE, tags=["1"])
    upstream.add("library/many", INDEX)
    upstream.add("library/nested", NESTED)
    return await start()


@pytest.fixture
async def operator(proxy: Proxy) -> AsyncIterator[Operator]:
    async with ClientSession(connector=UnixConnector(str(proxy.storage / "admin.sock"))) as session:
        yield Operator(session)


async def pull(operator: Operator, image: str, platforms: str = "") -> list[dict[str, Any]]:
    events = await operator.lines("POST", "pull", image=image, platforms=platforms)
    return [event for event in events if event["event"] != "progress"]


async def test_t68_an_image_is_pulled_whole(operator: Operator, proxy: Proxy) -> None:
    size = sum(map(len, ONE.blobs.values()))
    start, done = await pull(operator, "app:1")
    assert start == {"event": "start", "image": "docker.io/library/app:1"}
    assert done == {
        "event": "done",
        "image": "docker.io/library/app:1",
        "digest": ONE.digest,
        "bytes": size,
        "total": size,
        "fetched_bytes": size,
        "missing": 0,
        "warning": None,
    }
    assert proxy.held() == tree(ONE)
    [image] = await operator.lines("GET", "images")
    assert image["state"] == "whole"
    pulls = proxy.numbers["pulls_spent"]
    assert (await pull(operator, "app:1"))[-1]["fetched_bytes"] == 0
    assert proxy.numbers["pulls_spent"] == pulls, "what is held costs no pull"


@pytest.mark.parametrize(
    ("platforms", "places"),
    [
        ("linux/amd64", [0]),
        ("linux/arm64", [1]),
        ("linux/arm64/v8", [1]),
        ("linux/arm", [2]),
        ("linux/amd64,linux/arm/v7", [0, 2]),
        ("", [0, 1, 2]),
    ],
)
async def test_t68_the_selected_platforms_of_an_index_are_pulled(
    operator: Operator, proxy: Proxy, platforms: str, places: list[int]
) -> None:
    done = (await pull(operator, "many", platforms))[-1]
    assert done["missing"] == 0
    assert proxy.held() == {INDEX.digest} | tree(*(INDEX.children[place] for place in places))


async def test_all_platforms_of_an_index_in_an_index(operator: Operator, proxy: Proxy) -> None:
    assert (await pull(operator, "nested"))[-1]["missing"] == 0
    assert proxy.held() == tree(NESTED)


async def test_t68_missing_content_is_listed(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    [_, missing, done] = await pull(operator, "many", "windows/amd64")
    assert "there is no image for windows/amd64" in missing["reason"]
    assert "linux/amd64, linux/arm/v7, linux/arm64" in missing["reason"]
    assert done["missing"] == 1
    [_, missing, done] = await pull(operator, "none:1")
    assert (missing["digest"], done["digest"]) == ("docker.io/library/none:1", None)
    layer = ONE.layers[0]
    upstream.fail(status=500, kind="blob", reference=layer)
    [_, missing, done] = await pull(operator, "app:1")
    assert (missing["digest"], done["missing"]) == (layer, 1)
    assert proxy.held() == {INDEX.digest} | tree(ONE) - {layer}


async def test_an_image_that_does_not_fit(start: Start, upstream: FakeUpstream) -> None:
    large = content.image("large", layers=(300_000, 300_000))
    upstream.add("library/large", large)
    proxy = await start(storage={"max_size": 400_000})
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        [_, *missing, done] = await pull(Operator(session), "large")
    assert missing
    assert done["missing"] == len(missing)
    assert all("room" in event["reason"] for event in missing)


async def test_t68_the_reserve_of_a_rate_limit_is_left_for_clients(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=5)
    assert (await proxy.head("/v2/many/manifests/latest")).status == 200
    spent = proxy.numbers["pulls_spent"]
    [_, missing, done] = await pull(operator, "app:1")
    assert "reserved for clients" in missing["reason"]
    assert done["digest"] is None
    assert proxy.numbers["pulls_spent"] == spent


async def test_a_pull_joins_the_download_of_a_client(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    answers = await asyncio.gather(
        pull(operator, "app:1"),
        *(proxy.get(f"/v2/app/blobs/{digest}") for digest in ONE.blobs),
    )
    assert answers[0][-1]["missing"] == 0
    bodies = [
        r for r in upstream.requests if r.kind == "blob" and r.method == "GET" and r.status == 200
    ]
    assert len(bodies) == len(ONE.blobs)


async def test_t68_refresh_checks_at_once_and_reports_the_difference(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    name = "docker.io/library/app:1"
    known = {"image": name, "recorded": True}
    first = await operator.told("POST", "refresh", image="app:1")
    assert first == known | {"before": None, "digest": ONE.digest, "changed": True}
    assert (await proxy.get("/v2/app/manifests/1")).status == 200
    same = await operator.told("POST", "refresh", image="app:1")
    assert same == known | {"before": ONE.digest, "digest": ONE.digest, "changed": False}
    upstream.add("library/app", TWO, tags=["1"])
    assert (await proxy.get("/v2/app/manifests/1")).body == ONE.manifest, "inside tag_ttl"
    changed = await operator.told("POST", "refresh", image="app:1")
    assert changed == known | {"before": ONE.digest, "digest": TWO.digest, "changed": True}
    assert (await proxy.get("/v2/app/manifests/1")).body == TWO.manifest
    await upstream.stop()
    assert (await operator.ask("POST", "refresh", image="app:1")).status == 502


async def test_offline_no_request_is_sent(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(offline=True)
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        operator = Operator(session)
        assert (await operator.ask("POST", "refresh", image="app:1")).status == 409
        [_, missing, _] = await pull(operator, "app:1")
    assert "offline" in missing["reason"]
    assert not upstream.requests


def test_attestations_belong_to_all_platforms_only() -> None:
    attestation = content.image("attestation", platform="unknown/unknown")
    index = content.index(*INDEX.children, attestation)
    children = manifests.read(index.manifest).children
    assert children is not None
    listed = children.manifests
    chosen = Platforms(("linux/amd64",)).choose(index.manifest, listed)
    assert [one.digest for one in chosen.images] == [INDEX.children[0].digest]
    assert len(Platforms(()).choose(index.manifest, listed).images) == 4
