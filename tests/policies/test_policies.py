"""Policies in a running proxy: denials on every path, cold and warm."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proxy import policies
from proxy.core.errors import ConfigError
from proxy.policies import images
from proxy.policies.images import Images
from proxy.policies.rules import ImageFacts
from proxy.policies.signatures import Signatures
from proxy.runtime.client_key import CLIENT_KEY
from proxy.settings import Settings
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.content import Image
from tests.fakes.upstream import FakeUpstream
from tests.policies import signing
from tests.policies.asking import (
    AMD64,
    ARM64,
    IMAGE,
    INDEX,
    LAYER,
    OTHER,
    REPO,
    V2,
    blob,
    count,
    denied,
    is_denied,
    manifest,
    prepared,
    required,
    said,
    write,
)
from tests.policies.signing import Signer
from tests.running import Proxy, Start, until
from tests.web import pulling_as

# --- each condition --------------------------------------------------------------------------


async def test_without_policies_everything_is_served(proxy: Proxy) -> None:
    for path in (manifest("latest"), blob(LAYER), manifest("index")):
        assert (await proxy.get(path)).status == 200


async def test_denied_images_cause_no_request_to_upstream(
    start: Start, upstream: FakeUpstream
) -> None:
    because = "SEC-12: use the other one"
    proxy = await start(
        policies=[{"name": "no", "images": ["docker.io/*/app"], "deny": True, "because": because}]
    )
    for path in (manifest("latest"), manifest(IMAGE.digest), blob(LAYER)):
        answer = await proxy.get(path)
        assert is_denied(answer, "no")
        assert said(answer)["message"].endswith(because)
        assert "'no'" in said(answer)["message"]
        assert (await proxy.head(path)).status == 403
    assert not upstream.requests
    assert (await proxy.get("/v2/")).status == 200
    assert (await proxy.get(f"{V2}/tags/list")).status == 200


async def test_a_policy_covers_its_images_only(start: Start, upstream: FakeUpstream) -> None:
    upstream.add("acme/app", IMAGE)
    upstream.add("acme/free", IMAGE)
    policy = {"images": ["docker.io/acme/**"], "except": ["docker.io/acme/free"], "deny": True}
    proxy = await start(policies=[policy])
    assert is_denied(await proxy.get("/v2/acme/app/manifests/latest"), "1")
    assert (await proxy.get("/v2/acme/free/manifests/latest")).status == 200
    assert (await proxy.get(manifest("latest"))).status == 200


async def test_digests_are_denied_by_tag_digest_and_head(start: Start, tmp_path: Path) -> None:
    proxy = await start(policies=[denied(tmp_path, IMAGE.digest)])
    for _ in range(2):
        for ref in ("latest", IMAGE.digest):
            assert (await proxy.head(manifest(ref))).status == 403
            assert is_denied(await proxy.get(manifest(ref)), "bad")
    assert (await proxy.get(manifest("other"))).status == 200


async def test_an_image_with_a_denied_layer_is_denied(start: Start, tmp_path: Path) -> None:
    proxy = await start(policies=[denied(tmp_path, LAYER)])
    assert is_denied(await proxy.get(blob(LAYER)), "bad")
    assert is_denied(await proxy.get(manifest("latest")), "bad")


async def test_a_changed_list_of_digests_counts(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "WATCH_SECONDS", 0.01)
    proxy = await start(policies=[denied(tmp_path)])
    assert (await proxy.get(manifest("latest"))).status == 200
    denied(tmp_path, IMAGE.digest)
    await until(lambda: "files of policies changed" in proxy.log.getvalue())
    assert is_denied(await proxy.get(manifest("latest")), "bad")
    write(tmp_path / "denied", "not a digest\n")
    await until(lambda: "file not reloaded" in proxy.log.getvalue())
    assert is_denied(await proxy.get(manifest("latest")), "bad"), "the last good list counts"


async def test_children_of_a_denied_index_are_denied(start: Start, tmp_path: Path) -> None:
    proxy = await start(policies=[denied(tmp_path, INDEX.digest)])
    assert is_denied(await proxy.get(manifest("index")), "bad")
    assert is_denied(await proxy.get(manifest(AMD64.digest)), "bad")


async def test_the_size_of_an_image_is_limited(start: Start) -> None:
    size = sum(len(body) for body in OTHER.blobs.values())
    proxy = await start(policies=[{"name": "small", "max_image_size": size - 1}])
    assert is_denied(await proxy.get(manifest("other")), "small")
    assert (await proxy.get(manifest("latest"))).status == 200


async def test_a_damaged_manifest_is_not_believed(start: Start) -> None:
    size = sum(len(body) for body in OTHER.blobs.values())
    proxy = await start()
    assert (await proxy.get(manifest("other"))).status == 200
    await proxy.close()
    file = proxy.storage / "blobs" / "sha256" / OTHER.digest.partition(":")[2]
    smaller = OTHER.manifest.replace(b'"size": 3000', b'"size":    1')
    assert smaller != OTHER.manifest
    file.chmod(0o644)
    file.write_bytes(smaller)
    proxy = await start(policies=[{"name": "small", "max_image_size": size - 1}])
    assert is_denied(await proxy.get(blob(OTHER.layers[0])), "small")


@pytest.mark.parametrize(("change", "status"), [(0, 200), (-1, 403)])
async def test_the_size_of_an_index_is_that_of_its_largest_platform(
    start: Start, upstream: FakeUpstream, change: int, status: int
) -> None:
    large = content.image("large", layers=(9000,), platform="linux/arm64")
    upstream.add(REPO, content.index(AMD64, large), tags=["uneven"])
    upstream.add(REPO, content.index(large, AMD64), tags=["falling"])
    size = sum(len(body) for body in large.blobs.values())
    proxy = await start(policies=[{"max_image_size": size + change}])
    assert (await proxy.get(manifest("uneven"))).status == status
    assert (await proxy.get(manifest("falling"))).status == status
    assert (await proxy.get(manifest(AMD64.digest))).status == 200
    assert (await proxy.get(manifest(large.digest))).status == status


async def test_an_index_of_too_many_images_has_no_size_and_is_denied(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_CHILDREN", 1)
    upstream.add(REPO, content.index(INDEX), tags=["nested"])
    upstream.add(REPO, content.index(AMD64), tags=["one"])
    proxy = await start(policies=[{"name": "small", "max_image_size": "1GB"}])
    assert is_denied(await proxy.get(manifest("index")), "small")
    assert is_denied(await proxy.get(manifest("nested")), "small")
    assert (await proxy.get(manifest("one"))).status == 200


async def test_platforms(start: Start) -> None:
    proxy = await start(policies=[{"name": "only", "platforms": ["linux/amd64"]}])
    assert (await proxy.get(manifest("index"))).body == INDEX.manifest, "served unchanged"
    assert (await proxy.get(manifest(AMD64.digest))).status == 200
    for _ in range(2):
        assert is_denied(await proxy.get(manifest(ARM64.digest)), "only")
        assert (await proxy.head(manifest(ARM64.digest))).status == 403


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "text/html"])
@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64", None])
async def test_platforms_of_what_docker_runs_whatever_its_type_says(
    start: Start, upstream: FakeUpstream, kind: str, platform: str | None
) -> None:
    image = content.image("typed", platform=platform or "linux/amd64")
    document = json.loads(image.manifest)
    if platform is None:
        data = upstream.add_blob(REPO, b"no configuration")
        document["config"] |= {"digest": data, "size": 16}
    document["config"]["mediaType"] = kind
    upstream.add(REPO, image)
    upstream.add_manifest(REPO, content.encode(document), content.OCI_MANIFEST, tags=["typed"])
    proxy = await start(policies=[{"name": "only", "platforms": ["linux/amd64"]}])
    answer = await proxy.get(manifest("typed"))
    assert is_denied(answer, "only") is (platform != "linux/amd64"), answer
    if platform is None:
        assert "its platform is unknown" in said(answer)["message"]


@pytest.mark.parametrize(("named", "denied_by"), [("sha256", "sha512"), ("sha512", "sha256")])
async def test_a_denied_manifest_is_denied_under_its_other_digest(
    start: Start, upstream: FakeUpstream, tmp_path: Path, named: str, denied_by: str
) -> None:
    image = content.image("twice", algorithm=named)
    upstream.add(REPO, image, tags=["twice"])
    proxy = await start(policies=[denied(tmp_path, content.digest(image.manifest, denied_by))])
    for ref in ("twice", image.digest):
        assert is_denied(await proxy.get(manifest(ref)), "bad")
    assert (await proxy.get(manifest("latest"))).status == 200


async def test_media_types(start: Start, upstream: FakeUpstream) -> None:
    chart = content.artifact(None, "application/vnd.cncf.helm.config.v1+json")
    upstream.add(REPO, chart, tags=["chart"])
    proxy = await start(policies=[{"name": "images", "media_types": [content.OCI_CONFIG]}])
    assert (await proxy.get(manifest("latest"))).status == 200
    assert (await proxy.get(manifest("index"))).status == 200
    assert is_denied(await proxy.get(manifest("chart")), "images")


@pytest.mark.parametrize(
    "change",
    [
        {"manifests": []},
        {"Layers": []},
        {"layer\u017f": []},
        {"layers": [{"digest": "x"}]},
        {"layers": None},
    ],
    ids=str,
)
async def test_manifests_that_clients_may_read_in_two_ways_are_denied(
    start: Start, upstream: FakeUpstream, change: dict[str, Any]
) -> None:
    body = content.encode(json.loads(IMAGE.manifest) | change)
    upstream.add_manifest(REPO, body, content.OCI_MANIFEST, tags=["odd"])
    proxy = await start(policies=[{"name": "small", "max_image_size": "1GiB"}])
    answer = await proxy.get(manifest("odd"))
    assert is_denied(answer, "small"), answer
    assert "not understood" in said(answer)["message"]


async def test_a_manifest_with_the_type_of_an_index_is_judged_as_what_it_is(
    start: Start, upstream: FakeUpstream
) -> None:
    document = json.loads(OTHER.manifest) | {"mediaType": content.OCI_INDEX}
    upstream.add_manifest(REPO, content.encode(document), content.OCI_INDEX, tags=["lie"])
    proxy = await start(policies=[{"name": "small", "max_image_size": 2000}])
    assert is_denied(await proxy.get(manifest("lie")), "small")


async def test_all_policies_must_be_met(start: Start, tmp_path: Path) -> None:
    proxy = await start(
        policies=[{"platforms": ["linux/amd64"]}, denied(tmp_path, IMAGE.digest, name=None)]
    )
    assert is_denied(await proxy.get(manifest("latest")), "2")


# --- blobs -----------------------------------------------------------------------------------


async def test_blobs_of_denied_images_are_denied_unless_another_image_has_them(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    body = json.loads(IMAGE.manifest) | {"annotations": {"build": "2"}}
    sibling = Image(manifest=content.encode(body), media_type=IMAGE.media_type, blobs=IMAGE.blobs)
    upstream.add(REPO, sibling, tags=["sibling"])
    proxy = await start(policies=[denied(tmp_path, IMAGE.digest)])
    assert is_denied(await proxy.get(manifest("latest")), "bad")
    for _ in range(2):
        assert is_denied(await proxy.get(blob(LAYER)), "bad")
        assert (await proxy.head(blob(LAYER))).status == 403
    assert upstream.bodies(LAYER) == 0
    assert (await proxy.get(manifest("sibling"))).status == 200
    assert (await proxy.get(blob(LAYER))).status == 200


async def test_a_denied_manifest_is_no_blob(start: Start, tmp_path: Path) -> None:
    proxy = await start()
    assert (await proxy.get(manifest("latest"))).status == 200
    await proxy.close()
    proxy = await start(policies=[{"name": "small", "max_image_size": 10}])
    assert is_denied(await proxy.get(blob(IMAGE.digest)), "small")


async def test_nothing_denied_is_prefetched(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    proxy = await start(
        policies=[denied(tmp_path, IMAGE.digest)],
        prefetch={"blobs": 40, "idle_timeout": "30s"},
    )
    assert is_denied(await proxy.get(manifest("latest")), "bad")
    assert (await proxy.get(manifest("other"))).status == 200
    await upstream.until(lambda: upstream.count(kind="blob") >= 1)
    await proxy.get(blob(OTHER.layers[0]))
    await proxy.settled()
    assert upstream.bodies(LAYER) == 0
    assert upstream.bodies(IMAGE.config) == 0


# --- paths that need no upstream -------------------------------------------------------------


async def test_stale_answers_are_judged_too(
    start: Start, upstream: FakeUpstream, tmp_path: Path, clock: Clock
) -> None:
    proxy = await start()
    for path in (manifest("latest"), *map(blob, IMAGE.blobs)):
        assert (await proxy.get(path)).status == 200
    await proxy.settled()
    await proxy.close()
    proxy = await start(policies=[denied(tmp_path, IMAGE.digest)])
    clock.now += 100_000
    upstream.fail(503)
    assert is_denied(await proxy.get(manifest("latest")), "bad")
    assert (await proxy.head(manifest("latest"))).status == 403


async def test_the_response_cache_asks_too(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "WATCH_SECONDS", 0.01)
    proxy = await start(policies=[denied(tmp_path)])
    host, port = proxy.app.address.split(":")  # type: ignore[union-attr]
    for path in (manifest("latest"), blob(LAYER)):
        await proxy.get(path)
        await proxy.settled()
        await proxy.get(path)  # a small blob is in memory after this
    reader, writer = await asyncio.open_connection(host, int(port))

    async def status(path: str) -> bytes:
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return (await reader.readuntil(b"\r\n\r\n"))[9:12]

    paths = (manifest("latest"), manifest(IMAGE.digest), blob(LAYER))
    try:
        for path in paths:
            for _ in range(4):
                assert await status(path) == b"200"
        assert await prepared(proxy) >= 6, "the fast path answers"
        denied(tmp_path, IMAGE.digest)
        await until(lambda: "files of policies changed" in proxy.log.getvalue())
        for path in paths:
            for _ in range(4):
                assert await status(path) == b"403", path
        denied(tmp_path)
        await until(lambda: proxy.log.getvalue().count("files of policies changed") == 2)
        for path in paths:
            assert await status(path) == b"200"
    finally:
        writer.transport.abort()


async def test_a_trial_denies_nothing(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    policy = required(signer, tmp_path, audit=True)
    proxy = await start(policies=[policy, {"deny": True, "audit": True}])
    upstream.fail(503, reference=signing.sig_tag(OTHER.digest))
    for _ in range(3):
        assert (await proxy.get(manifest("latest"))).status == 200
    assert (await proxy.get(blob(LAYER))).status == 200
    assert (await proxy.get(manifest("other"))).status == 200, "not even if upstream fails"
    assert await count(proxy, "signed", "audited") >= 3
    assert await count(proxy, "signed", "denied") == 0
    assert await count(proxy, "signed", "failed") == 1
    upstream.heal()
    audited = await count(proxy, "signed", "audited")
    assert (await proxy.get(manifest("other"))).status == 200
    assert await count(proxy, "signed", "audited") == audited + 1, "a failure is not remembered"
    lines = map(json.loads, proxy.log.getvalue().splitlines())
    [event, *_] = [one for one in lines if one["event"] == "policy would deny"]
    assert (event["policy"], event["target"]) == ("signed", f"docker.io/{REPO}")


async def test_decisions_are_counted_and_logged(start: Start, tmp_path: Path) -> None:
    proxy = await start(policies=[denied(tmp_path, IMAGE.digest)])
    await proxy.get(manifest("latest"))
    await proxy.get(manifest("other"))
    assert await count(proxy, "bad", "denied") == 1
    assert await count(proxy, "bad", "allowed") == 1
    lines = map(json.loads, proxy.log.getvalue().splitlines())
    [event] = [one for one in lines if one["event"] == "policy denies"]
    assert event["policy"] == "bad"

    def logged() -> list[str | None]:
        lines = map(json.loads, proxy.log.getvalue().splitlines())
        asked = [one for one in lines if one["event"] == "request" and one.get("reference")]
        return [one.get("policy") for one in asked]

    await until(lambda: len(logged()) == 2)
    assert logged() == ["bad", None]
    assert IMAGE.digest in event["reason"]


async def test_what_one_client_cannot_see_denies_no_other_client(
    start: Start,
    upstream: FakeUpstream,
    signer: Signer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The registry refuses the first client the signature, and shows it to the others."""
    pulling_as.prepare(upstream, "bearer")
    asked: list[str] = []

    async def is_signed(*_: object) -> bool:
        asked.append(CLIENT_KEY.get())
        return CLIENT_KEY.get() != asked[0]

    monkeypatch.setattr(Signatures, "is_signed", is_signed)
    proxy = await pulling_as.started(start, policies=[required(signer, tmp_path)])
    ann, amy = pulling_as.Client(proxy, "ann"), pulling_as.Client(proxy, "amy")
    for _ in range(2):
        assert await ann.see("a manifest") == 403
    assert len(asked) == 1, "the client itself gets the same answer for a while"
    assert await amy.see("a manifest") == 200
    assert len(set(asked)) == 2


async def test_an_allowed_index_leaves_what_is_known_of_its_images(
    start: Start,
    upstream: FakeUpstream,
    signer: Signer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for signed in (AMD64, INDEX):
        signature = signing.signed_by(signer, signed.digest)
        upstream.add(REPO, signature, tags=[signing.sig_tag(signed.digest)])
    judged: list[str] = []
    facts = Images.facts

    async def counted(self: Images, target: Any, digest: Any, *more: Any) -> ImageFacts:
        judged.append(digest)
        return await facts(self, target, digest, *more)

    monkeypatch.setattr(Images, "facts", counted)
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest(ARM64.digest)), "signed")
    for digest in (AMD64.digest, INDEX.digest, AMD64.digest, ARM64.digest):
        assert (await proxy.get(manifest(digest))).status == 200
    assert judged == [ARM64.digest, AMD64.digest, INDEX.digest, ARM64.digest]


# --- reload ----------------------------------------------------------------------------------


def reconfigured(proxy: Proxy, upstream: FakeUpstream, policies: list[dict[str, Any]]) -> Settings:
    return Settings.model_validate(
        {
            "storage": {"path": str(proxy.storage)},
            "upstreams": {"docker.io": {"url": upstream.url}},
            "policies": policies,
        }
    )


async def test_a_reload_changes_policies(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    proxy = await start()
    assert (await proxy.get(manifest("latest"))).status == 200
    await proxy.app.reload(reconfigured(proxy, upstream, [denied(tmp_path, IMAGE.digest)]))
    assert is_denied(await proxy.get(manifest("latest")), "bad")
    missing = {"deny_digests_file": str(tmp_path / "none")}
    with pytest.raises(ConfigError, match="cannot be read"):
        await proxy.app.reload(reconfigured(proxy, upstream, [missing]))
    assert is_denied(await proxy.get(manifest("latest")), "bad")
    await proxy.app.reload(reconfigured(proxy, upstream, []))
    assert (await proxy.get(manifest("latest"))).status == 200


async def test_what_was_decided_about_a_blob_during_a_reload_is_not_kept(
    start: Start, upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, facts = asyncio.Event(), asyncio.Event(), Images.facts

    async def slow(*asked: Any) -> ImageFacts:
        begun.set()
        await may_end.wait()
        return await facts(*asked)

    proxy = await start()
    assert (await proxy.get(manifest("latest"))).status == 200
    large = {"name": "small", "max_image_size": "1GiB"}
    await proxy.app.reload(reconfigured(proxy, upstream, [large]))
    monkeypatch.setattr(Images, "facts", slow)
    running = asyncio.create_task(proxy.get(blob(LAYER)))
    await begun.wait()
    await proxy.app.reload(reconfigured(proxy, upstream, [denied(tmp_path, IMAGE.digest)]))
    may_end.set()
    assert (await running).status == 200
    assert is_denied(await proxy.get(blob(LAYER)), "bad")


@pytest.mark.parametrize("path", [manifest("latest"), blob(LAYER)])
async def test_a_verdict_from_before_a_reload_does_not_outlast_it(
    start: Start, upstream: FakeUpstream, tmp_path: Path, path: str
) -> None:
    signer = signing.p256()
    tag = signing.sig_tag(IMAGE.digest)
    upstream.add(REPO, signing.signed_by(signer, IMAGE.digest), tags=[tag])
    proxy = await start()
    assert (await proxy.get(manifest("latest"))).status == 200
    await proxy.app.reload(reconfigured(proxy, upstream, [required(signer, tmp_path)]))
    gate = upstream.hold(reference=tag)
    early = asyncio.ensure_future(proxy.get(path))
    await upstream.until(lambda: upstream.count(ref=tag) == 1)
    small = {"name": "small", "max_image_size": 10}
    await proxy.app.reload(reconfigured(proxy, upstream, [small]))
    gate.set()
    assert (await early).status in (200, 403)
    assert is_denied(await proxy.get(path), "small")
