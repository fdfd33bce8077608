"""Policies in a running proxy: what is denied, on every path, cold and warm."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from proxy import policies
from proxy.core.errors import ConfigError
from proxy.settings import Settings
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.content import Content, Image
from tests.fakes.upstream import FakeUpstream
from tests.policies import signing
from tests.policies.signing import Signer
from tests.running import Answer, Proxy, Start, until

REPO = "library/app"
V2 = f"/v2/{REPO}"
IMAGE = content.image(1, layers=(1000,))
[LAYER] = IMAGE.layers
OTHER = content.image("other", layers=(3000,))
INDEX = content.multi_platform(3, layers=(500,))
AMD64, ARM64 = INDEX.children


@pytest.fixture
def signer() -> Signer:
    return signing.p256()


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add(REPO, IMAGE, tags=["latest"])
    upstream.add(REPO, OTHER, tags=["other"])
    upstream.add(REPO, INDEX, tags=["index"])


def required(signer: Signer, tmp_path: Path, **more: Any) -> dict[str, Any]:
    keys = [signer.file(tmp_path)]
    return {"name": "signed", "images": ["**"], "require": {"cosign": {"keys": keys}}} | more


def denied(tmp_path: Path, *digests: str, **more: Any) -> dict[str, Any]:
    file = tmp_path / "denied"
    file.write_text("# known to be bad\n" + "".join(f"{one} # SEC-1\n" for one in digests))
    return {"name": "bad", "deny_digests_file": str(file)} | more


def said(answer: Answer) -> dict[str, Any]:
    [error] = json.loads(answer.body)["errors"]
    assert isinstance(error, dict)
    return error


def is_denied(answer: Answer, name: str) -> bool:
    if answer.status != 403:
        return False
    error = said(answer)
    return error["code"] == "DENIED" and error["detail"] == {"policy": name}


def manifest(ref: str) -> str:
    return f"{V2}/manifests/{ref}"


def blob(digest: str) -> str:
    return f"{V2}/blobs/{digest}"


async def count(proxy: Proxy, policy: str, outcome: str) -> int:
    page = (await proxy.get("/metrics")).body.decode()
    start = f'millpond_policy_decisions_total{{outcome="{outcome}",policy="{policy}"}}'
    other = f'millpond_policy_decisions_total{{policy="{policy}",outcome="{outcome}"}}'
    [line] = [one for one in page.splitlines() if one.startswith((start, other))]
    return int(float(line.split()[-1]))


async def prepared(proxy: Proxy) -> int:
    page = (await proxy.get("/metrics")).body.decode()
    [line] = [it for it in page.splitlines() if it.startswith("millpond_prepared_answers_total")]
    return int(float(line.split()[1]))


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
    (tmp_path / "denied").write_text("not a digest\n")
    await until(lambda: "a file of policies cannot be read" in proxy.log.getvalue())
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


@pytest.mark.parametrize(("change", "status"), [(0, 200), (-1, 403)])
async def test_the_size_of_an_index_is_that_of_its_largest_platform(
    start: Start, upstream: FakeUpstream, change: int, status: int
) -> None:
    large = content.image("large", layers=(9000,), platform="linux/arm64")
    upstream.add(REPO, content.index(AMD64, large), tags=["uneven"])
    size = sum(len(body) for body in large.blobs.values())
    proxy = await start(policies=[{"max_image_size": size + change}])
    assert (await proxy.get(manifest("uneven"))).status == status
    assert (await proxy.get(manifest(AMD64.digest))).status == 200
    assert (await proxy.get(manifest(large.digest))).status == status


async def test_platforms(start: Start) -> None:
    proxy = await start(policies=[{"name": "only", "platforms": ["linux/amd64"]}])
    assert (await proxy.get(manifest("index"))).body == INDEX.manifest, "served unchanged"
    assert (await proxy.get(manifest(AMD64.digest))).status == 200
    for _ in range(2):
        assert is_denied(await proxy.get(manifest(ARM64.digest)), "only")
        assert (await proxy.head(manifest(ARM64.digest))).status == 403


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


# --- signatures ------------------------------------------------------------------------------


def sign(upstream: FakeUpstream, signer: Signer, image: Content, form: str) -> None:
    if form == "tag":
        signature = signing.signed_by(signer, image.digest)
        upstream.add(REPO, signature, tags=[signing.sig_tag(image.digest)])
    elif form == "dsse":
        signing.attach(upstream, REPO, image, signing.dsse(signer, image.digest))
    else:
        message = {"signature": signing.text(signer.sign(image.manifest))}
        body = signing.bundle(messageSignature=message)
        signing.attach(upstream, REPO, image, body)


FORMS = ["tag", "dsse", "message"]


@pytest.mark.parametrize("has_api", [True, False], ids=["referrers", "fallback tag"])
@pytest.mark.parametrize("form", FORMS)
async def test_signed_images_only(
    start: Start,
    upstream: FakeUpstream,
    signer: Signer,
    tmp_path: Path,
    form: str,
    *,
    has_api: bool,
) -> None:
    upstream.behaviour.referrers = has_api
    sign(upstream, signer, IMAGE, form)
    if not has_api and form != "tag":
        listed = content.index()
        bundles = [
            one
            for one in upstream._repository(REPO).manifests.values()
            if signing.BUNDLE.encode() in one.body
        ]
        entry = {
            "mediaType": content.OCI_MANIFEST,
            "digest": content.digest(bundles[0].body),
            "size": len(bundles[0].body),
            "artifactType": signing.BUNDLE,
        }
        body = content.encode(json.loads(listed.manifest) | {"manifests": [entry]})
        tag = IMAGE.digest.replace(":", "-")
        upstream.add_manifest(REPO, body, content.OCI_INDEX, tags=[tag])
    proxy = await start(policies=[required(signer, tmp_path)])
    for ref in ("latest", IMAGE.digest):
        assert (await proxy.head(manifest(ref))).status == 200
        assert (await proxy.get(manifest(ref))).status == 200
    assert (await proxy.get(blob(LAYER))).status == 200
    for ref in ("other", OTHER.digest):
        assert (await proxy.head(manifest(ref))).status == 403
        assert is_denied(await proxy.get(manifest(ref)), "signed")
    assert is_denied(await proxy.get(blob(OTHER.layers[0])), "signed")


@pytest.mark.parametrize("form", FORMS)
async def test_signatures_of_others_do_not_count(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path, form: str
) -> None:
    sign(upstream, signing.p256(), IMAGE, form)
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest("latest")), "signed")


async def test_the_signature_of_another_image_under_this_tag_does_not_count(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    copied = signing.signed_by(signer, OTHER.digest)
    upstream.add(REPO, copied, tags=[signing.sig_tag(IMAGE.digest)])
    signing.attach(upstream, REPO, IMAGE, signing.dsse(signer, OTHER.digest))
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest("latest")), "signed")


async def test_one_good_signature_among_bad_ones_suffices(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    body, other = signing.payload(IMAGE.digest), signing.payload(INDEX.digest)
    bad = [
        (body, signing.text(signing.p256().sign(body))),
        (other, signing.text(signer.sign(other))),
        (body[:-2], "AAAA"),
    ]
    good = (body + b"\n", signing.text(signer.sign(body + b"\n")))
    upstream.add(REPO, signing.simple(*bad, good), tags=[signing.sig_tag(IMAGE.digest)])
    upstream.add(REPO, signing.simple(*bad), tags=[signing.sig_tag(OTHER.digest)])
    proxy = await start(policies=[required(signer, tmp_path)])
    assert (await proxy.get(manifest("latest"))).status == 200
    assert is_denied(await proxy.get(manifest("other")), "signed")


async def test_signatures_are_bounded_in_size_and_type(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    padded = signing.payload(IMAGE.digest, padding="x" * 200_000)
    large = signing.simple((padded, signing.text(signer.sign(padded))))
    upstream.add(REPO, large, tags=[signing.sig_tag(IMAGE.digest)])
    body = signing.payload(OTHER.digest)
    typed = signing.simple((body, signing.text(signer.sign(body))), media_type="text/plain")
    upstream.add(REPO, typed, tags=[signing.sig_tag(OTHER.digest)])
    gigantic = signing.dsse(signer, IMAGE.digest, predicate={"x": "y" * 2_000_000})
    signing.attach(upstream, REPO, IMAGE, gigantic)
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest("latest")), "signed")
    assert is_denied(await proxy.get(manifest("other")), "signed")
    for digest in (*large.blobs, content.digest(gigantic)):
        if digest != large.config:
            assert upstream.bodies(digest) == 0


async def test_a_signature_with_a_false_size_does_not_count(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    good = signing.signed_by(signer, IMAGE.digest)
    document = json.loads(good.manifest)
    document["layers"][0]["size"] += 1
    upstream.add(REPO, good, tags=[])
    upstream.add_manifest(
        REPO, content.encode(document), content.OCI_MANIFEST, [signing.sig_tag(IMAGE.digest)]
    )
    proxy = await start(policies=[required(signer, tmp_path)])
    assert (await proxy.get(manifest("latest"))).status in {403, 502}


@pytest.mark.parametrize("form", FORMS)
async def test_children_of_a_signed_index_are_signed(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path, form: str
) -> None:
    sign(upstream, signer, INDEX, form)
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest(AMD64.digest)), "signed"), "no index is known yet"
    assert (await proxy.get(manifest("index"))).status == 200
    for child in INDEX.children:
        assert (await proxy.get(manifest(child.digest))).status == (
            403 if child is AMD64 else 200
        ), "absence is remembered for a while"


async def test_an_image_that_a_signed_image_lists_as_layer_is_not_signed(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    holder = content.artifact(None, payload=OTHER.manifest)
    upstream.add(REPO, holder, tags=["holder"])
    sign(upstream, signer, holder, "tag")
    proxy = await start(policies=[required(signer, tmp_path)])
    assert (await proxy.get(manifest("holder"))).status == 200
    assert is_denied(await proxy.get(manifest(OTHER.digest)), "signed")


async def test_signatures_themselves_are_served(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    signature = signing.signed_by(signer, IMAGE.digest)
    upstream.add(REPO, signature, tags=[signing.sig_tag(IMAGE.digest)])
    bundle = signing.attach(upstream, REPO, IMAGE, signing.dsse(signer, IMAGE.digest))
    sbom = content.artifact(IMAGE)
    upstream.add(REPO, sbom, tags=[])
    policy = required(signer, tmp_path, platforms=["linux/s390x"], media_types=["x/y"])
    proxy = await start(policies=[policy])
    tag = signing.sig_tag(IMAGE.digest)
    for ref in (tag, signature.digest, bundle.digest, sbom.digest):
        assert (await proxy.get(manifest(ref))).status == 200, ref
        assert (await proxy.head(manifest(ref))).status == 200
    for one in (*signature.layers, *bundle.layers, signature.config):
        assert (await proxy.get(blob(one))).status == 200
    assert (await proxy.get(f"{V2}/referrers/{IMAGE.digest}")).status == 200


async def test_signatures_are_denied_by_digest(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    signature = signing.signed_by(signer, IMAGE.digest)
    tag = signing.sig_tag(IMAGE.digest)
    upstream.add(REPO, signature, tags=[tag])
    proxy = await start(policies=[denied(tmp_path, signature.digest)])
    assert is_denied(await proxy.get(manifest(tag)), "bad")


async def test_an_image_under_the_tag_of_a_signature_needs_one(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    tag = signing.sig_tag(IMAGE.digest)
    upstream.retag(REPO, tag, OTHER.digest)
    document = json.loads(OTHER.manifest) | {"subject": IMAGE.descriptor}
    body = content.encode(document)
    with_subject = upstream.add_manifest(REPO, body, content.OCI_MANIFEST)
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest(tag)), "signed")
    assert is_denied(await proxy.get(manifest(with_subject)), "signed")


@pytest.mark.parametrize("kind", ["manifest", "referrers", "blob"])
async def test_a_failure_of_upstream_is_no_absence_of_signatures(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path, kind: str
) -> None:
    tag = signing.sig_tag(IMAGE.digest)
    signature = signing.signed_by(signer, IMAGE.digest)
    if kind != "referrers":
        upstream.add(REPO, signature, tags=[tag])
    else:
        signing.attach(upstream, REPO, IMAGE, signing.dsse(signer, IMAGE.digest))
    reference = {"manifest": tag, "referrers": IMAGE.digest, "blob": signature.layers[0]}[kind]
    upstream.fail(503, kind=kind, reference=reference)  # type: ignore[arg-type]
    proxy = await start(policies=[required(signer, tmp_path)])
    answer = await proxy.get(manifest("latest"))
    assert answer.status == 502, answer
    assert await count(proxy, "signed", "failed") == 1
    upstream.heal()
    assert (await proxy.get(manifest("latest"))).status == 200


async def test_a_slow_upstream_ends_in_504(
    start: Start,
    upstream: FakeUpstream,
    signer: Signer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest("latest")), "signed")
    monkeypatch.setattr(policies, "CHECK_SECONDS", 0.05)
    gate = upstream.hold(reference=signing.sig_tag(OTHER.digest))
    answer = await proxy.get(manifest("other"))
    gate.set()
    assert answer.status == 504


async def test_an_image_that_is_signed_later_is_served_later(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path, clock: Clock
) -> None:
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest("latest")), "signed")
    sign(upstream, signer, IMAGE, "tag")
    upstream.clear()
    assert is_denied(await proxy.get(manifest("latest")), "signed")
    assert not upstream.requests
    clock.now += 31
    assert (await proxy.get(manifest("latest"))).status == 200


async def test_concurrent_requests_share_one_search(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    sign(upstream, signer, IMAGE, "tag")
    tag = signing.sig_tag(IMAGE.digest)
    gate = upstream.hold(reference=tag)
    proxy = await start(policies=[required(signer, tmp_path)])
    paths = [manifest("latest"), manifest(IMAGE.digest)] * 4
    running = [asyncio.ensure_future(proxy.get(path)) for path in paths]
    await upstream.until(lambda: upstream.count(ref=tag) == 1)
    gate.set()
    assert {(await one).status for one in running} == {200}
    assert upstream.count(ref=tag) == 1


# --- paths that need no upstream -------------------------------------------------------------


async def test_verdicts_outlive_upstream_and_restarts(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    sign(upstream, signer, IMAGE, "tag")
    sign(upstream, signer, INDEX, "dsse")
    policy = required(signer, tmp_path)
    proxy = await start(policies=[policy])
    paths = [manifest("latest"), *map(blob, IMAGE.blobs), manifest("index")]
    for child in INDEX.children:
        paths += [manifest(child.digest), *map(blob, child.blobs)]
    for path in paths:
        assert (await proxy.get(path)).status == 200, path
    assert is_denied(await proxy.get(manifest("other")), "signed")
    await proxy.settled()
    await proxy.close()
    await upstream.stop()
    for changes in ({"offline": True}, {}):
        proxy = await start(policies=[policy], **changes)
        for path in paths:
            assert (await proxy.get(path)).status == 200, (path, changes)
        assert (await proxy.get(manifest("other"))).status != 200
        assert (await proxy.get(manifest(OTHER.digest))).status != 200
        await proxy.close()


async def test_held_signatures_are_verified_offline_by_another_key(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    second = signing.p256()
    body = signing.payload(IMAGE.digest)
    both = [(body, signing.text(one.sign(body))) for one in (signer, second)]
    upstream.add(REPO, signing.simple(*both), tags=[signing.sig_tag(IMAGE.digest)])
    proxy = await start(policies=[required(signer, tmp_path)])
    for path in (manifest("latest"), *map(blob, IMAGE.blobs)):
        assert (await proxy.get(path)).status == 200
    await proxy.settled()
    await proxy.close()
    await upstream.stop()
    proxy = await start(policies=[required(second, tmp_path)], offline=True)
    assert (await proxy.get(manifest("latest"))).status == 200
    await proxy.close()
    proxy = await start(policies=[required(signing.p256(), tmp_path)], offline=True)
    assert is_denied(await proxy.get(manifest("latest")), "signed")


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
        os.utime(tmp_path / "denied", (1, 1))
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
    assert IMAGE.digest in event["reason"]


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
