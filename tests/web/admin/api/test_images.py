"""Images: searched, sorted, page by page, and one in detail."""

import base64
import time

import pytest

from proxy.core.names import Digest, Repo, Tag, Target
from proxy.services.inventory import weigh
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, until
from tests.web.admin.api.client import ApiClient, Document

BASE, OWN = 40_000, 90_000
PLATFORMS = ("linux/amd64", "linux/arm64")


async def pull(api: ApiClient, proxy: Proxy, name: str) -> None:
    started = await api.change("POST", "pull", {"image": name, "referrers": True})
    job = proxy.app.operator_api.jobs.get(started["job"])
    await until(lambda: job.ended is not None)
    assert job.error is None


async def names(api: ApiClient, **query: object) -> list[str]:
    """The last parts of the names of all pages."""
    found: list[str] = []
    cursor: Document = {}
    while True:
        page = await api.get("images", **query, **cursor)
        found += [one["name"].rpartition("/")[2] for one in page["images"]]
        if page["next"] is None:
            return found
        assert len(page["images"]) == query.get("limit", 50)
        cursor = {"cursor": page["next"]}


async def test_images_are_searched_and_sorted(
    api: ApiClient, proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    for number, (name, size) in enumerate((("b", 9), ("a", 200_000), ("c", 50_000))):
        upstream.add(f"library/{name}", content.image(10 + number, layers=(size,)))
    for name in ("b", "a", "c"):
        clock.advance(10)
        await pull(api, proxy, name)
    for _ in range(3):
        await proxy.get("/v2/c/manifests/latest")
    await proxy.get("/v2/b/manifests/latest")
    clock.advance(10)
    await proxy.get("/v2/a/manifests/latest")
    for limit in (1, 2, 50):
        assert await names(api, limit=limit) == ["a:latest", "b:latest", "c:latest"]
        assert await names(api, sort="bytes", limit=limit) == ["a:latest", "c:latest", "b:latest"]
        assert (await names(api, sort="pulls", limit=limit))[0] == "c:latest"
    assert (await names(api, sort="used"))[0] in ("a:latest", "c:latest")
    assert await names(api, q="LIBRARY/B") == ["b:latest"]
    assert await names(api, q="nothing") == []
    [first] = (await api.get("images", q="/a:"))["images"]
    assert first["state"] == "whole"
    assert first["held_bytes"] > 200_000
    assert first["pinned"] is first["in_use"] is False
    assert first["pulls"] == 1
    await api.change("PUT", "pins", {"pin": "a"})
    assert (await api.get("images", q="/a:"))["images"][0]["pinned"] is True


def cursor(document: str) -> Document:
    return {"cursor": base64.urlsafe_b64encode(document.encode()).decode()}


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "colour"},
        {"limit": 0},
        {"limit": 501},
        {"cursor": "x"},
        cursor("[]"),
        cursor(f'[1{"0" * 400}, "a"]'),
        cursor('[NaN, "a"]'),
        cursor('[-Infinity, "a"]'),
        cursor("[" * 500),
    ],
)
async def test_wrong_parameters_get_400(api: ApiClient, query: Document) -> None:
    assert (await api.ask("GET", "images", **query)).status == 400


async def test_a_snapshot_of_many_tags_is_kept_and_of_few_is_current(
    api: ApiClient, proxy: Proxy
) -> None:
    target = Target("docker.io", Repo("library/many"))
    await pull(api, proxy, "app")
    tags = proxy.app.content.tags
    image = await tags.get(Target("docker.io", Repo("library/app")), Tag("latest"))
    assert image is not None
    for number in range(1200):
        await tags.set(target, Tag(f"v{number:04}"), image)
    found = await names(api, q="many", limit=500)
    assert found == [f"many:v{number:04}" for number in range(1200)]
    await tags.set(target, Tag("v9999"), image)
    kept = proxy.app.operator_api.image_search._entries
    kept._until = time.monotonic() + 60
    assert await names(api, q="v9999") == []
    kept._until = 0.0
    assert await names(api, q="v9999") == ["many:v9999"]


async def test_an_image_in_detail(
    api: ApiClient, proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    index = upstream.add("library/multi", content.multi_platform(5, PLATFORMS))
    await pull(api, proxy, "multi")
    await api.change("PUT", "pins", {"pin": "multi"})
    async with api.session.put("/-/in-use?source=k8s", data=b"multi") as answer:
        assert answer.status == 200
    clock.advance(100)
    found = await api.get("image", name="multi")
    assert (found["name"], found["digest"]) == ("docker.io/library/multi:latest", index.digest)
    assert found["media_type"] == index.media_type
    assert found["held_bytes"] == (await weigh(proxy.app.content, Digest(index.digest))).held_bytes
    assert found["pinned_by"] == ["docker.io/library/multi:latest"]
    assert found["in_use_by"] == ["k8s"]
    assert found["fresh_until"] > clock()
    assert [one["digest"] for one in found["history"]] == [index.digest]
    assert [one["platform"] for one in found["platforms"]] == list(PLATFORMS)
    first = found["platforms"][0]
    assert first["size"] == sum(layer["size"] for layer in first["layers"]) > 0
    assert all(layer["held"] for layer in first["layers"])
    [by_digest] = (await api.get("image", name=f"multi@{first['digest']}"))["platforms"]
    assert by_digest["platform"] == "linux/amd64"
    assert by_digest["layers"] == first["layers"]


async def test_to_look_at_an_image_is_no_use_of_it(
    api: ApiClient, proxy: Proxy, clock: Clock
) -> None:
    for name in ("app", "tool"):
        await pull(api, proxy, name)
        clock.advance(100)
    coldest = await proxy.app.content.evictor.coldest(1)
    assert (await api.get("image", name="app"))["platforms"]
    assert await proxy.app.content.evictor.coldest(1) == coldest


async def test_layers_say_with_how_many_others_they_are_shared(
    api: ApiClient, proxy: Proxy, upstream: FakeUpstream
) -> None:
    for number in range(3):
        upstream.add(f"library/s{number}", content.image(3, platform=f"linux/p{number}"))
        await pull(api, proxy, f"s{number}")
    [only] = (await api.get("image", name="s1"))["platforms"]
    assert {layer["shared_with"] for layer in only["layers"]} == {2}


async def test_referrers_that_are_held_are_listed(
    api: ApiClient, proxy: Proxy, upstream: FakeUpstream
) -> None:
    image = upstream.add("library/signed", content.image(4))
    signature = upstream.add(
        "library/signed", content.artifact(image, artifact_type="application/x.sig"), tags=()
    )
    await pull(api, proxy, "signed")
    found = await api.get("image", name="signed")
    assert found["referrers"] == [
        {"digest": signature.digest, "artifact_type": "application/x.sig", "held": True}
    ]


async def test_what_the_cache_never_saw_is_not_found(api: ApiClient, proxy: Proxy) -> None:
    absent = "sha256:" + "0" * 64
    for name in ("nothing:1", f"app@{absent}"):
        told = await api.ask("GET", "image", name=name)
        assert (told.status, told.error[0]) == (404, "NAME_UNKNOWN"), name
    await pull(api, proxy, "app")
    [image] = (await api.get("images"))["images"]
    told = await api.ask("GET", "image", name=f"tool@{image['digest']}")
    assert told.status == 404, "of another repository"
    for name in ("", "a b", absent):
        assert (await api.ask("GET", "image", name=name)).status == 400


async def test_an_image_that_was_evicted_is_shown_as_absent(api: ApiClient, proxy: Proxy) -> None:
    await pull(api, proxy, "app")
    await proxy.app.content.evictor.evict(10**9)
    found = await api.get("image", name="app")
    assert (found["state"], found["held_bytes"], found["platforms"]) == ("absent", 0, [])
    assert found["last_used"] is None
    assert found["digest"] == found["history"][0]["digest"]
