"""Signatures of cosign, good and forged, without a network."""

import json
from typing import Any

import pytest

from proxy.core.names import Digest
from proxy.policies.cosign import is_signed_bundle, is_signed_payload
from proxy.policies.keys import read_key
from tests.fakes import content
from tests.policies import signing
from tests.policies.signing import DATA, IN_TOTO, Signer, text

IMAGE = content.image(1, layers=(1000,))
OTHER = content.image(2, layers=(1000,))
DIGEST = Digest(IMAGE.digest)
SIGNER, STRANGER = signing.p256(), signing.p256()
KEYS = [read_key(SIGNER.pem)]


def is_good_payload(body: bytes, signature: object, keys: Any = KEYS) -> bool:
    return is_signed_payload(body, signature, DIGEST, keys)


def is_good_bundle(body: bytes, keys: Any = KEYS) -> bool:
    return is_signed_bundle(body, DIGEST, IMAGE.manifest, keys)


KINDS = {
    "p256": signing.p256,
    "p384": signing.p384,
    "rsa": signing.rsa2048,
    "ed25519": signing.ed25519_key,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_key_verifies_both_formats(kind: str) -> None:
    signer = KINDS[kind]()
    keys = [read_key(SIGNER.pem), read_key(signer.pem)]
    body = signing.payload(DIGEST)
    assert is_good_payload(body, text(signer.sign(body)), keys)
    assert is_good_bundle(signing.dsse(signer, DIGEST), keys)
    message = signing.bundle(messageSignature={"signature": text(signer.sign(IMAGE.manifest))})
    assert is_good_bundle(message, keys)
    assert not is_good_payload(body, text(signer.sign(body)))
    assert not is_good_bundle(signing.dsse(signer, DIGEST))
    assert not is_good_bundle(message)


@pytest.mark.parametrize("name", ["dsse", "message"])
def test_bundles_of_sigstore_itself_are_verified(name: str) -> None:
    body = (DATA / f"{name}.sigstore.json").read_bytes()
    assert (DATA / "manifest.json").read_bytes() == IMAGE.manifest
    key = read_key((DATA / "cosign.pub").read_bytes())
    assert is_good_bundle(body, [key])
    assert not is_signed_bundle(body, Digest(OTHER.digest), OTHER.manifest, [key])
    assert not is_good_bundle(body)


def payload_forgeries() -> dict[str, tuple[bytes, object]]:
    body, other = signing.payload(DIGEST), signing.payload(OTHER.digest)
    typed = signing.payload(DIGEST, type="atomic container signature")
    cased = signing.payload(DIGEST, image={"Docker-manifest-digest": DIGEST})
    good = text(SIGNER.sign(body))
    return {
        "other key": (body, text(STRANGER.sign(body))),
        "other digest": (other, text(SIGNER.sign(other))),
        "changed payload": (body + b" ", good),
        "other type": (typed, text(SIGNER.sign(typed))),
        "other case": (cased, text(SIGNER.sign(cased))),
        "truncated": (body[:-1], text(SIGNER.sign(body[:-1]))),
        "no object": (b"[]", text(SIGNER.sign(b"[]"))),
        "no signature": (body, None),
        "empty signature": (body, ""),
        "not base64": (body, good[:-2] + "?!"),
        "base64 with a tail": (body, good + "\n!"),
        "gigantic signature": (body, "A" * 10_000_000),
        "zero signature": (body, text(b"\x30\x06\x02\x01\x00\x02\x01\x00")),
        "key as signature": (body, text(SIGNER.pem)),
    }


@pytest.mark.parametrize("name", payload_forgeries())
def test_forged_payloads_are_refused(name: str) -> None:
    assert not is_good_payload(*payload_forgeries()[name])


class Gullible:
    def verifies(self, signature: bytes, data: bytes) -> bool:
        return True


def test_a_long_signature_is_not_even_decoded() -> None:
    body = signing.payload(DIGEST)
    assert is_good_payload(body, "A" * 8192, [Gullible()])
    assert not is_good_payload(body, "A" * 8196, [Gullible()])


def changed(document: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(document) | changes).encode()


def bundle_forgeries() -> dict[str, bytes]:
    good = signing.dsse(SIGNER, DIGEST)
    envelope = json.loads(good)["dsseEnvelope"]
    both = [*envelope["signatures"], {"sig": text(STRANGER.sign(b"x")), "keyid": ""}]
    message = {"signature": text(SIGNER.sign(IMAGE.manifest))}
    body = signing.statement(DIGEST)
    claimed = {"algorithm": "SHA2_256", "digest": text(bytes.fromhex(DIGEST[7:]))}

    def sealed(statement: bytes, kind: str = IN_TOTO, signer: Signer = SIGNER) -> bytes:
        return signing.bundle(dsseEnvelope=signing.envelope(signer, statement, kind))

    return {
        "other key": signing.dsse(STRANGER, DIGEST),
        "other digest": signing.dsse(SIGNER, OTHER.digest),
        "other payload type": sealed(body, "application/json"),
        "payload type changed later": signing.bundle(
            dsseEnvelope=signing.envelope(SIGNER, body, "text/plain") | {"payloadType": IN_TOTO}
        ),
        "payload type denied later": signing.bundle(
            dsseEnvelope=envelope | {"payloadType": "text/plain"}
        ),
        "without PAE": signing.bundle(
            dsseEnvelope=envelope | {"signatures": [{"sig": text(SIGNER.sign(body))}]}
        ),
        "other predicate": signing.dsse(SIGNER, DIGEST, predicateType="https://slsa.dev/v1"),
        "other statement": signing.dsse(SIGNER, DIGEST, _type="https://in-toto.io/Statement/v0.1"),
        "no subject": signing.dsse(SIGNER, DIGEST, subject=[]),
        "other algorithm": signing.dsse(SIGNER, DIGEST, subject=[{"digest": {"sha1": DIGEST[7:]}}]),
        "digest as name": signing.dsse(SIGNER, DIGEST, subject=[{"name": DIGEST}]),
        "two signatures": signing.bundle(dsseEnvelope=envelope | {"signatures": both}),
        "no signatures": signing.bundle(dsseEnvelope=envelope | {"signatures": []}),
        "signatures as object": signing.bundle(
            dsseEnvelope=envelope | {"signatures": envelope["signatures"][0]}
        ),
        "other media type": changed(good, mediaType="application/json"),
        "both contents": changed(good, messageSignature=message),
        "neither content": signing.bundle(),
        "truncated": good[:-1],
        "not JSON": b"\x00" * 64,
        "a list": b"[" + good + b"]",
        "message of another image": signing.bundle(
            messageSignature={"signature": text(SIGNER.sign(OTHER.manifest))}
        ),
        "digest of the message only": signing.bundle(
            messageSignature={
                "messageDigest": claimed,
                "signature": text(STRANGER.sign(IMAGE.manifest)),
            }
        ),
        "digest signed as message": signing.bundle(
            messageSignature={"signature": text(SIGNER.sign(DIGEST.encode()))}
        ),
        "algorithm none": signing.bundle(
            messageSignature={"messageDigest": {"algorithm": "none"}, "signature": ""}
        ),
        "own key inside": json.dumps(
            json.loads(signing.dsse(STRANGER, DIGEST))
            | {"verificationMaterial": {"publicKey": {"rawBytes": text(STRANGER.pem)}}}
        ).encode(),
    }


@pytest.mark.parametrize("name", bundle_forgeries())
def test_forged_bundles_are_refused(name: str) -> None:
    assert not is_good_bundle(bundle_forgeries()[name])


def test_the_good_ones_beside_the_forged_are_accepted() -> None:
    body = signing.payload(DIGEST)
    assert is_good_payload(body, text(SIGNER.sign(body)))
    assert is_good_bundle(signing.dsse(SIGNER, DIGEST))
    message = signing.bundle(messageSignature={"signature": text(SIGNER.sign(IMAGE.manifest))})
    assert is_good_bundle(message)


def test_a_signature_of_one_algorithm_is_none_of_another() -> None:
    body = signing.payload(DIGEST)
    for signer in map(KINDS.__getitem__, KINDS):
        signature = text(signer().sign(body))
        assert not is_good_payload(
            body, signature, [read_key(make().pem) for make in KINDS.values()]
        )
