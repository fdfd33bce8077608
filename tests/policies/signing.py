"""Signs images as cosign does, from its specification, and forges such signatures."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes import content
from tests.fakes.content import Content, Image
from tests.fakes.upstream import FakeUpstream

SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"
DATA = Path(__file__).resolve().parents[1] / "data" / "cosign"


@dataclass(frozen=True)
class Signer:
    key: Any

    @property
    def pem(self) -> bytes:
        public: bytes = self.key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return public

    def sign(self, data: bytes) -> bytes:
        key = self.key
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(data)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, padding.PKCS1v15(), SHA256())
        large = key.curve.name == "secp384r1"
        signature: bytes = key.sign(data, ec.ECDSA(SHA384() if large else SHA256()))
        return signature

    def file(self, directory: Path, name: str = "cosign.pub") -> str:
        path = directory / name
        path.write_bytes(self.pem)
        return str(path)


def p256() -> Signer:
    return Signer(ec.generate_private_key(ec.SECP256R1()))


def p384() -> Signer:
    return Signer(ec.generate_private_key(ec.SECP384R1()))


def rsa2048() -> Signer:
    return Signer(rsa.generate_private_key(65537, 2048))


def ed25519_key() -> Signer:
    return Signer(ed25519.Ed25519PrivateKey.generate())


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def payload(digest: str, **critical: Any) -> bytes:
    stated = {
        "identity": {"docker-reference": "registry.example/app"},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": stated | critical, "optional": None}).encode()


def simple(*signed: tuple[bytes, str], media_type: str = SIMPLE) -> Image:
    """The manifest under a ``.sig`` tag: payloads with their signatures in base64."""
    config = b'{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
    document = {
        "schemaVersion": 2,
        "mediaType": content.OCI_MANIFEST,
        "config": content._descriptor(content.OCI_CONFIG, config),
        "layers": [
            content._descriptor(media_type, body)
            | {"annotations": {"dev.cosignproject.cosign/signature": signature}}
            for body, signature in signed
        ],
    }
    blobs = [config, *(body for body, _ in signed)]
    return Image(
        manifest=content.encode(document),
        media_type=content.OCI_MANIFEST,
        blobs={content.digest(body): body for body in blobs},
    )


def signed_by(signer: Signer, digest: str) -> Image:
    body = payload(digest)
    return simple((body, text(signer.sign(body))))


def sig_tag(digest: str) -> str:
    return digest.replace(":", "-") + ".sig"


def statement(digest: str, **changes: Any) -> bytes:
    stated = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.partition(":")[2]}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }
    return json.dumps(stated | changes).encode()


def pae(kind: str, body: bytes) -> bytes:
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(body), body)


def envelope(signer: Signer, body: bytes, kind: str = IN_TOTO) -> dict[str, Any]:
    signature = text(signer.sign(pae(kind, body)))
    return {
        "payload": text(body),
        "payloadType": kind,
        "signatures": [{"sig": signature, "keyid": "any"}],
    }


def bundle(**parts: Any) -> bytes:
    material = {"publicKey": {"hint": "unauthenticated"}}
    return json.dumps({"mediaType": BUNDLE, "verificationMaterial": material} | parts).encode()


def dsse(signer: Signer, digest: str, **changes: Any) -> bytes:
    return bundle(dsseEnvelope=envelope(signer, statement(digest, **changes)))


def attach(upstream: FakeUpstream, repository: str, image: Content, body: bytes) -> Image:
    """Store a bundle as a referrer of an image."""
    found = content.artifact(image, BUNDLE, payload=body)
    upstream.add(repository, found, tags=[])
    return found
