"""Dropping images through the running proxy: what is deleted, what stays, what never returns."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, UnixConnector

from proxy.index import blob_rows, name_rows, sqlite
from proxy.services import drop as drops
from proxy.services.drop import Dropper
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.web.admin.test_actions import Operator

BLOCK = 4096
ONE, TWO = content.image("one"), content.image("two")
INDEX = content.multi_platform("index")
APP = "docker.io/library/app"


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", ONE, tags=["1", "one"])
    upstream.add("library/app", TWO, tags=["2"])
    upstream.add("library/app", INDEX, tags=["index"])
    upstream.add("library/copy", ONE, tags=["1"])
    return await start()


@pytest.fixture
async def operator(proxy: Proxy) -> AsyncIterator[Operator]:
    async with ClientSession(connector=UnixConnector(str(proxy.storage / "admin.sock"))) as session:
        yield Operator(session)


async def pull(proxy: Proxy, name: str, ref: str, image: content.Image) -> None:
    assert (await proxy.get(f"/v2/{name}/manifests/{ref}")).status == 200
    for digest in image.blobs:
        assert (await proxy.get(f"/v2/{name}/blobs/{digest}")).status == 200
    await proxy.settled()


async def drop(operator: Operator, name: str, **query: str) -> list[dict[str, Any]]:
    return await operator.lines("DELETE", "images", match=name, **query)


def tree(*images: content.Content) -> set[str]:
    return {digest for image in images for digest in (*image.manifests, *image.blobs)}


async def names(operator: Operator) -> list[str]:
    return [line["name"] for line in await operator.lines("GET", "images")]


async def test_t68_a_dropped_tag_frees_its_disk_and_nothing_else(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, "app", "1", ONE)
    await pull(proxy, "app", "2", TWO)
    before = proxy.stats["cache"]["bytes"]
    foretold = await drop(operator, "app:1", dry_run="true")
    assert proxy.held() == tree(ONE, TWO), "a dry run drops nothing"
    told = await drop(operator, "app:1")
    assert told == foretold
    known = {"event": "image", "name": f"{APP}:1", "digest": ONE.digest}
    size = len(tree(ONE)) * BLOCK
    assert told == [
        known | {"dropped": True, "reason": None, "bytes": size},
        {"event": "done", "images": 1, "refused": 0, "blobs": len(tree(ONE)), "bytes": size},
    ]
    assert proxy.held() == tree(TWO)
    assert proxy.stats["cache"]["bytes"] == before - size
    assert await names(operator) == [f"{APP}:2"]
    asked = len(upstream.requests)
    await pull(proxy, "app", "1", ONE)
    assert len(upstream.requests) >= asked + 1 + len(ONE.blobs), "a later pull fetches it anew"
    assert proxy.held() == tree(ONE, TWO)


async def test_t68_content_that_another_tag_or_repository_needs_stays(
    operator: Operator, proxy: Proxy
) -> None:
    await pull(proxy, "app", "1", ONE)
    await pull(proxy, "app", "one", ONE)
    await pull(proxy, "copy", "1", ONE)
    for name in ("app:1", "app:one"):
        [image, done] = await drop(operator, name)
        assert (image["dropped"], done["blobs"]) == (True, 0)
        assert proxy.held() == tree(ONE)
    assert await names(operator) == ["docker.io/library/copy:1"]
    [_, done] = await drop(operator, "copy")
    assert done["blobs"] == len(tree(ONE))
    assert not proxy.held()


async def test_an_image_that_another_repository_has_by_its_digest_stays(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, "app", "1", ONE)
    await pull(proxy, "copy", ONE.digest, ONE)
    [_, done] = await drop(operator, "app:1")
    assert done["blobs"] == 0
    asked = len(upstream.requests)
    await pull(proxy, "copy", ONE.digest, ONE)
    assert len(upstream.requests) == asked


def with_a_layer_of_one() -> content.Image:
    """Return TWO with another layer, which ONE has too."""
    shared = json.loads(TWO.manifest)
    shared["layers"].append(json.loads(ONE.manifest)["layers"][0])
    body = content.encode(shared)
    blobs = {**TWO.blobs, ONE.layers[0]: ONE.blobs[ONE.layers[0]]}
    return content.Image(manifest=body, media_type=TWO.media_type, blobs=blobs)


def with_layers_of_others(number: int) -> content.Image:
    """Return an image that has layers of its own, and some of the images beside it."""
    image = content.image(f"many {number}")
    shared = json.loads(image.manifest)
    blobs = dict(image.blobs)
    for other in (number // 2, number // 5, 0):
        layer = content.image(f"many {other}").layers[0]
        if layer not in blobs:
            blobs[layer] = content.image(f"many {other}").blobs[layer]
            size = len(blobs[layer])
            shared["layers"].append(shared["layers"][0] | {"digest": layer, "size": size})
    body = content.encode(shared)
    return content.Image(manifest=body, media_type=image.media_type, blobs=blobs)


MANY = [with_layers_of_others(number) for number in range(8)]


async def pull_many(proxy: Proxy, upstream: FakeUpstream) -> None:
    """Fill two repositories with images that share layers; each image has two tags."""
    for number, image in enumerate(MANY):
        name = ("app", "copy")[number % 2]
        upstream.add(f"library/{name}", image, tags=[f"v{number}", f"w{7 - number}"])
        for tag in (f"v{number}", f"w{7 - number}"):
            await pull(proxy, name, tag, image)
    assert proxy.held() == tree(*MANY)


@pytest.mark.parametrize("step", [1, 3, 100])
async def test_images_that_share_content_go_in_steps(
    operator: Operator,
    proxy: Proxy,
    upstream: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    monkeypatch.setattr(drops, "_STEP", step)
    monkeypatch.setattr(drops, "_BATCH", 2 * step)
    await pull_many(proxy, upstream)
    foretold = await drop(operator, "docker.io/**", dry_run="true")
    told = await drop(operator, "docker.io/**")
    assert told == foretold
    assert (told[-1]["images"], told[-1]["blobs"]) == (16, len(tree(*MANY)))
    assert sum(event["bytes"] for event in told[:-1]) == told[-1]["bytes"]
    assert not proxy.held()
    assert not await proxy.app.content.links.of(lambda _: True)
    assert proxy.stats["cache"]["bytes"] == 0


async def test_no_step_of_a_drop_is_large(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other writes wait while one runs."""
    monkeypatch.setattr(drops, "_STEP", 1)
    monkeypatch.setattr(drops, "_BATCH", 3)
    monkeypatch.setattr(sqlite, "_SLICE", 3)
    sizes: list[int] = []

    def counted(work: Any) -> Any:
        def count(db: Any, *arguments: Any) -> Any:
            sizes.append(len(arguments[-1]))
            return work(db, *arguments)

        return count

    for module, name in (
        (name_rows, "unlink"),
        (blob_rows, "drop"),
        (blob_rows, "delete_loose_files"),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    await pull_many(proxy, upstream)
    await drop(operator, "docker.io/**")
    assert not proxy.held()
    assert max(sizes) <= 3
    assert len(sizes) >= 3 * len(tree(*MANY)) / 3


async def test_a_drop_that_breaks_off_leaves_whole_images_and_can_be_repeated(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drops, "_STEP", 2)
    await pull_many(proxy, upstream)
    evictor, calls = proxy.app.content.evictor, 0
    discard = evictor.discard

    async def broken(digests: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError
        return await discard(digests)

    monkeypatch.setattr(evictor, "discard", broken)
    with pytest.raises((ClientError, AssertionError)):
        await drop(operator, "docker.io/**")
    left = await operator.lines("GET", "images")
    assert 0 < len(left) < 16
    assert {line["state"] for line in left} == {"whole"}
    monkeypatch.undo()
    [*_, done] = await drop(operator, "docker.io/**")
    assert done["images"] == len(left)
    assert not proxy.held()
    assert not await names(operator)


async def test_layers_stay_of_an_image_that_arrives_while_another_is_dropped(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add("library/both", with_a_layer_of_one())
    await pull(proxy, "app", "1", ONE)
    carry_out = Dropper._carry_out

    async def later(*drop: Any) -> None:
        assert (await proxy.get("/v2/both/manifests/latest")).status == 200
        await carry_out(*drop)

    monkeypatch.setattr(Dropper, "_carry_out", later)
    await drop(operator, "app:1")
    assert ONE.layers[0] in proxy.held()
    assert ONE.digest not in proxy.held()


async def test_t68_layers_that_another_image_lists_stay(
    operator: Operator, start: Start, upstream: FakeUpstream, proxy: Proxy
) -> None:
    both = with_a_layer_of_one()
    upstream.add("library/both", both)
    await pull(proxy, "both", "latest", both)
    await pull(proxy, "app", "1", ONE)
    [_, done] = await drop(operator, "app:1")
    assert done["blobs"] == len(tree(ONE)) - 1
    assert proxy.held() == tree(both)


async def test_t68_an_index_goes_with_its_images(operator: Operator, proxy: Proxy) -> None:
    assert (await proxy.get("/v2/app/manifests/index")).status == 200
    child = INDEX.children[0]
    assert isinstance(child, content.Image)
    await pull(proxy, "app", child.digest, child)
    [refused, done] = await drop(operator, f"app@{child.digest}")
    assert (refused["dropped"], refused["reason"]) == (False, "part of another image")
    assert (done["images"], done["refused"]) == (0, 1)
    await drop(operator, "app:index")
    assert not proxy.held()


@pytest.mark.parametrize("pin", ["app:1", "app:*", f"app@{ONE.digest}", ONE.digest])
async def test_t68_a_pinned_image_stays(operator: Operator, proxy: Proxy, pin: str) -> None:
    await pull(proxy, "app", "1", ONE)
    await pull(proxy, "app", "2", TWO)
    await operator.told("PUT", "pins", pin=pin)
    told = await drop(operator, "app")
    refused = [event for event in told if event["event"] == "image" and not event["dropped"]]
    assert f"{APP}:1" in [event["name"] for event in refused]
    assert all(event["reason"].startswith("pinned as ") for event in refused)
    assert tree(ONE) <= proxy.held()
    upstream_requests = proxy.numbers["upstream_requests"]
    await pull(proxy, "app", ONE.digest, ONE)
    assert proxy.numbers["upstream_requests"] == upstream_requests, "it is served from here"
    await operator.told("DELETE", "pins", pin=pin)
    await drop(operator, "app")
    assert not proxy.held()


async def test_t68_nothing_of_a_dropped_repository_is_served_by_digest(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, "app", "1", ONE)
    await pull(proxy, "copy", "1", ONE)
    assert (await proxy.head(f"/v2/app/manifests/{TWO.digest}")).status == 200
    [image, done] = await drop(operator, "app")
    assert (image["name"], done["blobs"]) == (f"{APP}:1", 0)
    assert proxy.held() == tree(ONE), "the other repository has it"
    await upstream.stop()
    for path in (f"manifests/{ONE.digest}", "manifests/1", *(f"blobs/{d}" for d in ONE.blobs)):
        assert (await proxy.get(f"/v2/app/{path}")).status >= 500, path
    assert (await proxy.head(f"/v2/app/manifests/{TWO.digest}")).status >= 500
    assert (await proxy.get(f"/v2/copy/manifests/{ONE.digest}")).status == 200


async def test_a_repository_without_known_tags_is_dropped(operator: Operator, proxy: Proxy) -> None:
    await pull(proxy, "app", ONE.digest, ONE)
    [done] = await drop(operator, "app")
    assert (done["images"], done["blobs"]) == (0, len(tree(ONE)))
    assert not proxy.held()


async def test_t68_a_dropped_tag_does_not_come_back(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream, start: Start
) -> None:
    await pull(proxy, "app", "1", ONE)
    repository = "library/app"
    upstream.add(repository, TWO, tags=["1"])
    assert (await proxy.get("/v2/app/manifests/1", Cache_Control="no-cache")).status == 200
    await pull(proxy, "app", "1", TWO)
    assert len(await proxy.history("docker.io", repository, "1")) == 2
    await drop(operator, "app:1")
    assert not proxy.held(), "what it pointed to before goes too"
    assert APP not in (proxy.storage / "index.json").read_text()
    await upstream.stop()
    assert (await proxy.get("/v2/app/manifests/1")).status >= 500
    await proxy.close()
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/1")).status >= 500
    assert await proxy.history("docker.io", repository, "1") == ()


async def test_dropping_nothing(operator: Operator, proxy: Proxy) -> None:
    done = {"event": "done", "images": 0, "refused": 0, "blobs": 0, "bytes": 0}
    for name in ("none", "none:1", "removed.example/*", f"none@{ONE.digest}", ONE.digest):
        assert await drop(operator, name) == [done]


async def test_wrappers_in_the_layout_are_dropped_too(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    docker = content.image("docker", docker=True)
    upstream.add("library/docker", docker)
    await pull(proxy, "docker", "latest", docker)
    await until(lambda: proxy.stats["cache"]["files"] == len(tree(docker)) + 1)
    await drop(operator, "docker")
    assert not proxy.held()
    assert proxy.stats["cache"]["bytes"] == 0


async def test_concurrent_drops_leave_nothing(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    tags = [f"v{number}" for number in range(20)]
    upstream.add("library/app", ONE, tags=tags)
    for tag in tags:
        await pull(proxy, "app", tag, ONE)
    await asyncio.gather(*(drop(operator, f"app:{tag}") for tag in tags))
    assert not proxy.held()
    assert APP not in (proxy.storage / "index.json").read_text()
    assert proxy.stats["cache"]["storage_errors"] == 0


async def test_t68_a_dropped_tag_leaves_the_kept_list_of_tags(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, "app", "1", ONE)
    await pull(proxy, "app", "2", TWO)
    assert "1" in json.loads((await proxy.get("/v2/app/tags/list")).body)["tags"]
    await drop(operator, "app:1")
    await upstream.stop()
    answer = await proxy.get("/v2/app/tags/list")
    assert (answer.status, json.loads(answer.body)["tags"]) == (200, ["2"])


async def test_an_image_that_is_pinned_while_its_drop_is_planned_stays(
    proxy: Proxy, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pull(proxy, "app", "1", ONE)
    graph = proxy.app.content.graph
    listed_by_others, planned, go_on = graph.listed_by_others, asyncio.Event(), asyncio.Event()

    async def slow(*digests: Any) -> Any:
        planned.set()
        await go_on.wait()
        return await listed_by_others(*digests)

    monkeypatch.setattr(graph, "listed_by_others", slow)
    dropping = asyncio.create_task(drop(operator, "app:1"))
    await planned.wait()
    await operator.ask("PUT", "pins", pin="app:1")
    go_on.set()
    [refused, _] = await dropping
    assert (refused["dropped"], refused["reason"]) == (False, f"pinned as {APP}:1")
    assert proxy.held() == tree(ONE)


async def test_upstreams_list_of_referrers_goes_with_the_repository(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", content.artifact(ONE, "application/vnd.example.sbom.v1"), tags=())
    await pull(proxy, "app", "1", ONE)
    path = f"/v2/app/referrers/{ONE.digest}"
    assert json.loads((await proxy.get(path)).body)["manifests"]
    await drop(operator, "app")
    await upstream.stop()
    assert (await proxy.get(path)).status == 502
