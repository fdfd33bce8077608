"""Signatures are limited in size, in number, and in the claims of their manifests."""

import json
from pathlib import Path

import pytest

from proxy.policies import signatures
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.policies import signing
from tests.policies.asking import IMAGE, OTHER, REPO, is_denied, manifest, required
from tests.policies.signing import Signer
from tests.running import Start


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


@pytest.mark.parametrize("form", ["tag", "bundle"])
async def test_only_some_signatures_of_an_image_are_read(
    start: Start,
    upstream: FakeUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    monkeypatch.setattr(signatures, "MAX_SIGNATURES", 2)
    strangers = [signing.p256() for _ in range(3)]
    if form == "tag":
        bodies = [signing.payload(IMAGE.digest) + b" " * number for number in range(3)]
        pairs = zip(bodies, strangers, strict=True)
        signed = signing.simple(*((body, signing.text(one.sign(body))) for body, one in pairs))
        upstream.add(REPO, signed, tags=[signing.sig_tag(IMAGE.digest)])
    else:
        bodies = [signing.dsse(one, IMAGE.digest) for one in strangers]
        for body in bodies:
            signing.attach(upstream, REPO, IMAGE, body)
    proxy = await start(policies=[required(signing.p256(), tmp_path)])
    assert is_denied(await proxy.get(manifest("latest")), "signed")
    assert sum(upstream.bodies(content.digest(body)) for body in bodies) == 2
