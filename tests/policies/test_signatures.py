"""Images that must be signed, in a running proxy: good signatures and forged ones."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proxy import policies
from proxy.core.names import Digest
from proxy.policies import cosign
from proxy.policies.cosign import is_signed_payload
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.content import Content
from tests.fakes.upstream import FakeUpstream
from tests.policies import signing
from tests.policies.asking import (
    AMD64,
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
    required,
    said,
)
from tests.policies.signing import Signer
from tests.running import Start


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


@pytest.mark.parametrize("form", FORMS)
async def test_children_of_a_signed_index_are_signed(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path, form: str
) -> None:
    sign(upstream, signer, INDEX, form)
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest(AMD64.digest)), "signed"), "no index is known yet"
    assert (await proxy.get(manifest("index"))).status == 200
    upstream.clear()
    for child in INDEX.children:
        assert (await proxy.get(manifest(child.digest))).status == 200
        assert not upstream.count(ref=signing.sig_tag(child.digest)), "the index suffices"


async def test_the_signature_of_an_index_is_found_by_its_child(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    sign(upstream, signer, INDEX, "tag")
    proxy = await start()
    assert (await proxy.get(manifest("index"))).status == 200
    await proxy.close()
    proxy = await start(policies=[required(signer, tmp_path)])
    assert (await proxy.get(manifest(AMD64.digest))).status == 200


async def test_a_child_that_is_judged_while_its_index_arrives_is_judged_again(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    sign(upstream, signer, INDEX, "tag")
    proxy = await start(policies=[required(signer, tmp_path)])
    tag = signing.sig_tag(AMD64.digest)
    gate = upstream.hold(reference=tag)
    early = asyncio.ensure_future(proxy.get(manifest(AMD64.digest)))
    await upstream.until(lambda: upstream.count(ref=tag) == 1)
    assert (await proxy.get(manifest("index"))).status == 200
    gate.set()
    assert is_denied(await early, "signed")
    assert (await proxy.get(manifest(AMD64.digest))).status == 200


async def test_an_unsigned_child_stays_denied_beside_another_signed_index(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    sign(upstream, signer, INDEX, "tag")
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest("latest")), "signed")
    assert (await proxy.get(manifest("index"))).status == 200
    upstream.clear()
    assert is_denied(await proxy.get(manifest("latest")), "signed")
    assert not upstream.requests, "it is still remembered"


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
    fallback = tag.removesuffix(".sig")
    upstream.add(REPO, content.index(bundle), tags=[fallback])
    for ref in (fallback, tag, signature.digest, bundle.digest, sbom.digest):
        assert (await proxy.get(manifest(ref))).status == 200, ref
        assert (await proxy.head(manifest(ref))).status == 200
    for one in (*signature.layers, *bundle.layers, signature.config):
        assert (await proxy.get(blob(one))).status == 200
    assert (await proxy.get(f"{V2}/referrers/{IMAGE.digest}")).status == 200


async def test_a_signature_that_was_denied_by_digest_is_served_under_its_tag(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    signature = signing.signed_by(signer, IMAGE.digest)
    upstream.add(REPO, signature, tags=[signing.sig_tag(IMAGE.digest)])
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest(signature.digest)), "signed"), "nothing says what"
    assert (await proxy.get(manifest(signing.sig_tag(IMAGE.digest)))).status == 200


async def test_signatures_are_denied_by_digest(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    signature = signing.signed_by(signer, IMAGE.digest)
    tag = signing.sig_tag(IMAGE.digest)
    upstream.add(REPO, signature, tags=[tag])
    proxy = await start(policies=[denied(tmp_path, signature.digest)])
    assert is_denied(await proxy.get(manifest(tag)), "bad")


async def test_a_tag_in_another_repository_makes_no_signature_of_an_image(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    inert = signing.signed_by(signing.p256(), OTHER.digest)
    upstream.add(REPO, inert, tags=["inert"])
    upstream.add("library/strange", inert, tags=[signing.sig_tag(OTHER.digest)])
    proxy = await start(policies=[required(signer, tmp_path, images=[f"docker.io/{REPO}"])])
    strange = f"/v2/library/strange/manifests/{signing.sig_tag(OTHER.digest)}"
    assert (await proxy.get(strange)).status == 200
    assert is_denied(await proxy.get(manifest("inert")), "signed")


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


@pytest.mark.parametrize("config", [content.OCI_CONFIG, "application/json"])
async def test_an_image_with_a_subject_and_layers_of_other_types_needs_one(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path, config: str
) -> None:
    document = json.loads(OTHER.manifest) | {"subject": IMAGE.descriptor}
    document["config"]["mediaType"] = config
    for layer in document["layers"]:
        layer["mediaType"] = "application/vnd.example.layer"
    digest = upstream.add_manifest(REPO, content.encode(document), content.OCI_MANIFEST)
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest(digest)), "signed")


async def test_an_image_that_calls_its_layers_signatures_needs_one(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    document = json.loads(OTHER.manifest)
    for layer in document["layers"]:
        layer["mediaType"] = signing.SIMPLE
    tag = signing.sig_tag(IMAGE.digest)
    upstream.add_manifest(REPO, content.encode(document), content.OCI_MANIFEST, tags=[tag])
    proxy = await start(policies=[required(signer, tmp_path)])
    assert is_denied(await proxy.get(manifest(tag)), "signed")


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
    assert "was not checked in time" in said(answer)["message"]


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
    start: Start,
    upstream: FakeUpstream,
    signer: Signer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified: list[str] = []

    def verify(payload: bytes, signature: object, image: Digest, keys: Any) -> bool:
        verified.append(image)
        return is_signed_payload(payload, signature, image, keys)

    monkeypatch.setattr(cosign, "is_signed_payload", verify)
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
    assert verified == [IMAGE.digest]


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


async def test_the_verdict_outlives_the_signature(
    start: Start, upstream: FakeUpstream, signer: Signer, tmp_path: Path
) -> None:
    signature = signing.signed_by(signer, IMAGE.digest)
    upstream.add(REPO, signature, tags=[signing.sig_tag(IMAGE.digest)])
    policy = required(signer, tmp_path)
    proxy = await start(policies=[policy])
    for path in (manifest("latest"), *map(blob, IMAGE.blobs)):
        assert (await proxy.get(path)).status == 200
    await proxy.settled()
    for digest in (signature.digest, *signature.blobs):
        await proxy.app.content.faults.drop(Digest(digest), reason="the test")
    await proxy.close()
    await upstream.stop()
    proxy = await start(policies=[policy], offline=True)
    assert (await proxy.get(manifest("latest"))).status == 200


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
