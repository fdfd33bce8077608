"""Manifests as upstream has them: bytes, type, digest and name, whatever clients accept."""

import json
from dataclasses import replace

import pytest

from tests.fakes import content
from tests.fakes.faults import header
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

OCI = content.image(1)
DOCKER = content.image(1, docker=True)
INDEX = content.multi_platform(2)
LIST = content.multi_platform(2, docker=True)
UNTYPED_DOCKER = replace(content.untyped(5), media_type=content.DOCKER_MANIFEST)
HEX = OCI.digest.removeprefix("sha256:")


def check(answer: Answer, expected: content.Content) -> None:
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == expected.media_type
    assert answer.headers["Docker-Content-Digest"] == expected.digest
    assert answer.headers["Content-Length"] == str(len(expected.manifest))
    assert answer.body in {b"", expected.manifest}


@pytest.mark.parametrize("image", [DOCKER, LIST], ids=["image", "list"])
async def test_t11_docker_manifests_stay_docker_manifests(
    proxy: Proxy, upstream: FakeUpstream, image: content.Content
) -> None:
    upstream.add("library/app", image)
    oci = f"{content.OCI_INDEX}, {content.OCI_MANIFEST}"
    for ref in ("latest", image.digest, "latest"):
        answer = await proxy.get(f"/v2/app/manifests/{ref}", Accept=oci)
        check(answer, image)
        assert answer.body == image.manifest


@pytest.mark.parametrize(
    "thing",
    [OCI, DOCKER, INDEX, LIST, UNTYPED_DOCKER, content.unknown(6), content.artifact(OCI)],
    ids=["oci", "docker", "index", "list", "untyped", "unknown", "artifact"],
)
async def test_t12_the_type_is_the_one_upstream_gave(
    start: Start, upstream: FakeUpstream, thing: content.Content
) -> None:
    upstream.add("library/app", thing)
    proxy = await start()
    paths = ("/v2/app/manifests/latest", f"/v2/app/manifests/{thing.digest}")
    for path in paths:
        check(await proxy.head(path), thing)
    for path in (*paths, *paths):
        check(await proxy.get(path), thing)
        check(await proxy.head(path), thing)
    await proxy.close()
    again = await start()
    await upstream.stop()
    for path in paths:
        check(await again.head(path), thing)
        check(await again.get(path), thing)


@pytest.mark.parametrize("thing", [OCI, DOCKER, INDEX, LIST, content.untyped(5)])
async def test_t12_without_a_type_the_manifest_tells_its_own(
    proxy: Proxy, upstream: FakeUpstream, thing: content.Content
) -> None:
    upstream.add("library/app", thing)
    upstream.fault(header("Content-Type", None), kind="manifest")
    check(await proxy.head("/v2/app/manifests/latest"), thing)
    check(await proxy.get("/v2/app/manifests/latest"), thing)


@pytest.mark.parametrize("thing", [DOCKER, LIST], ids=["image", "list"])
async def test_t12_one_upstream_does_not_decide_the_type_for_another(
    start: Start, upstream: FakeUpstream, thing: content.Content
) -> None:
    upstream.add("library/app", thing)
    async with FakeUpstream() as lab:
        lab.add_manifest("app", thing.manifest, "text/html", tags=["latest"])
        proxy = await start(upstreams={"lab": {"url": lab.url}})
        assert (await proxy.get("/v2/lab/app/manifests/latest")).body == thing.manifest
        for path in (f"/v2/app/manifests/{thing.digest}", "/v2/app/manifests/latest"):
            check(await proxy.get(path), thing)
            check(await proxy.head(path), thing)


@pytest.mark.parametrize(
    "thing", [OCI, DOCKER, INDEX, LIST], ids=["oci", "docker", "index", "list"]
)
async def test_t14_all_types_are_asked_for_whatever_a_client_accepts(
    proxy: Proxy, upstream: FakeUpstream, thing: content.Content
) -> None:
    upstream.behaviour.strict_accept = True
    upstream.add("library/app", thing)
    for path in ("/v2/app/manifests/latest", f"/v2/app/manifests/{thing.digest}"):
        for accept in ("application/json", content.OCI_MANIFEST, content.DOCKER_LIST, ""):
            check(await proxy.head(path, Accept=accept), thing)
            check(await proxy.get(path, Accept=accept), thing)
    assert upstream.count("GET", "manifest") == 1, "what clients accept is no part of the key"


@pytest.mark.parametrize(
    "tag", [f"sha256-{HEX}", f"sha256-{HEX}.sig", f"sha256-{HEX}.att", HEX, f"sha-{HEX[:7]}"]
)
async def test_t16_tags_that_look_like_digests_are_tags(
    proxy: Proxy, upstream: FakeUpstream, tag: str
) -> None:
    signature = content.artifact(OCI)
    upstream.add("library/app", OCI, tags=["latest"])
    upstream.add("library/app", signature, tags=[tag])
    check(await proxy.get(f"/v2/app/manifests/{OCI.digest}"), OCI)
    check(await proxy.head(f"/v2/app/manifests/{tag}"), signature)
    check(await proxy.get(f"/v2/app/manifests/{tag}"), signature)
    check(await proxy.get(f"/v2/app/manifests/{signature.digest}"), signature)
    listed = json.loads((await proxy.get("/v2/app/tags/list")).body)["tags"]
    assert sorted(listed) == sorted(["latest", tag])


async def test_c07_an_index_is_kept_whole_and_its_images_come_when_asked_for(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", INDEX)
    here, elsewhere = INDEX.children
    proxy = await start()
    check(await proxy.get("/v2/app/manifests/latest"), INDEX)
    check(await proxy.get(f"/v2/app/manifests/{here.digest}"), here)
    await proxy.close()
    again = await start()
    upstream.clear()
    check(await again.get("/v2/app/manifests/latest"), INDEX)
    assert not upstream.requests
    check(await again.get(f"/v2/app/manifests/{elsewhere.digest}"), elsewhere)
    for digest, data in elsewhere.blobs.items():
        assert (await again.get(f"/v2/app/blobs/{digest}")).body == data


async def test_c07_an_index_without_one_of_its_images_serves_the_others(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    here, elsewhere = INDEX.children
    upstream.add("library/app", INDEX)
    upstream.remove("library/app", elsewhere.digest)
    check(await proxy.get("/v2/app/manifests/latest"), INDEX)
    assert (await proxy.get(f"/v2/app/manifests/{elsewhere.digest}")).status == 404
    check(await proxy.get(f"/v2/app/manifests/{here.digest}"), here)


async def test_c11_only_what_is_asked_for_is_fetched(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.add("library/app", INDEX)
    here, _ = INDEX.children
    check(await proxy.get("/v2/app/manifests/latest"), INDEX)
    check(await proxy.get(f"/v2/app/manifests/{here.digest}"), here)
    for digest in here.blobs:
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).status == 200
    await proxy.settled()
    asked = {request.reference for request in upstream.requests}
    assert asked == {"latest", here.digest, *here.blobs}
    assert proxy.held() == {INDEX.digest, here.digest, *here.blobs}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("thing", [OCI, INDEX], ids=["image", "index"])
async def test_c22_a_digest_is_enough_on_a_cold_cache(
    proxy: Proxy, upstream: FakeUpstream, method: str, thing: content.Content
) -> None:
    upstream.add("library/app", thing)
    path = f"/v2/app/manifests/{thing.digest}"
    check(await proxy.ask(method, path), thing)
    check(await proxy.get(path), thing)
    for child in getattr(thing, "children", ()):
        check(await proxy.get(f"/v2/app/manifests/{child.digest}"), child)
    for digest, data in thing.blobs.items():
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == data
    assert "latest" not in {request.reference for request in upstream.requests}
    upstream.clear()
    check(await proxy.get("/v2/app/manifests/latest"), thing)
    assert len(upstream.requests) == 1, "now the tag, which nobody had asked for"


async def test_t43_a_foreign_layer_is_left_where_it_is(
    start: Start, proxy: Proxy, upstream: FakeUpstream
) -> None:
    async with FakeUpstream() as elsewhere:
        image = content.foreign_image([f"{elsewhere.url}/layer"], docker=True)
        upstream.add("library/app", image)
        check(await proxy.get("/v2/app/manifests/latest"), image)
        foreign, *own = image.layers
        for digest in (image.config, *own):
            assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == image.blobs[digest]
        answer = await proxy.get(f"/v2/app/blobs/{foreign}")
        assert (answer.status, b'"BLOB_UNKNOWN"' in answer.body) == (404, True)
        await proxy.settled()
        await proxy.close()
        offline = await start(offline=True)
        check(await offline.get("/v2/app/manifests/latest"), image)
        assert not elsewhere.requests, "addresses in manifests are for clients, never for us"


async def test_t43_a_foreign_layer_that_upstream_has_is_a_layer(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    image = content.foreign_image(["http://127.0.0.1:1/layer"])
    upstream.add("library/app", image)
    data = content.blob(512, "0 foreign")
    digest = upstream.add_blob("library/app", data)
    assert digest == image.layers[0]
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == data
