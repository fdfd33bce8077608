"""Verifies cosign signatures of an image. Uses neither network nor storage.

Two formats: payloads of simple signing, under the tag ``sha256-<hex>.sig`` (cosign
``specs/SIGNATURE_SPEC.md``), and bundles of Sigstore, as referrers (cosign
``specs/BUNDLE_SPEC.md``, ``sigstore_bundle.proto``). The metadata of a signature, such as key hints
and digests of the message, is unauthenticated and not used.
"""

import base64
import binascii
from collections.abc import Collection
from typing import Final, Protocol

from proxy.core.names import Digest
from proxy.core.tolerant_json import read_object

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
BUNDLE_TYPES: Final = (
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    *(f"application/vnd.dev.sigstore.bundle+json;version=0.{minor}" for minor in (1, 2, 3)),
)
MAX_SIGNATURE: Final = 8 * 1024
"""Characters of a signature in base64."""

_PAYLOAD: Final = "cosign container image signature"
_IN_TOTO: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"


class Key(Protocol):
    """A public key."""

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return True if ``signature`` is one of ``data`` by this key."""


def is_signed_payload(
    payload: bytes, signature: object, image: Digest, keys: Collection[Key]
) -> bool:
    """Return True if a payload of simple signing is about ``image`` and signed by one of ``keys``.

    ``signature`` is the value of the annotation, in base64.
    """
    critical = _object(read_object(payload), "critical")
    return (
        critical.get("type") == _PAYLOAD
        and _object(critical, "image").get("docker-manifest-digest") == image
        and _is_signed(payload, signature, keys)
    )


def is_signed_bundle(bundle: bytes, image: Digest, manifest: bytes, keys: Collection[Key]) -> bool:
    """Return True if a bundle has a signature of ``image`` by one of ``keys``.

    The signature is over a statement with the image's digest (DSSE), or over its manifest's bytes.
    """
    document = read_object(bundle)
    if document.get("mediaType") not in BUNDLE_TYPES:
        return False
    if ("dsseEnvelope" in document) == ("messageSignature" in document):
        return False
    if "messageSignature" in document:
        signature = _object(document, "messageSignature").get("signature")
        return _is_signed(manifest, signature, keys)
    return _is_signed_envelope(_object(document, "dsseEnvelope"), image, keys)


def _is_signed_envelope(envelope: dict[str, object], image: Digest, keys: Collection[Key]) -> bool:
    """Return True for an envelope (DSSE 1.0) with exactly one signature, over a statement."""
    payload, signatures = _decoded(envelope.get("payload")), envelope.get("signatures")
    if payload is None or envelope.get("payloadType") != _IN_TOTO:
        return False
    if not isinstance(signatures, list) or len(signatures) != 1:
        return False
    [signature] = signatures
    if not isinstance(signature, dict) or not _is_signed(
        b"DSSEv1 %d %b %d %b" % (len(_IN_TOTO), _IN_TOTO.encode(), len(payload), payload),
        signature.get("sig"),
        keys,
    ):
        return False
    statement = read_object(payload)
    return (
        statement.get("_type") == _STATEMENT
        and statement.get("predicateType") == _PREDICATE
        and _is_about(statement.get("subject"), image)
    )


def _is_about(subjects: object, image: Digest) -> bool:
    algorithm, _, encoded = image.partition(":")
    return isinstance(subjects, list) and any(
        isinstance(subject, dict) and _object(subject, "digest").get(algorithm) == encoded
        for subject in subjects
    )


def _is_signed(data: bytes, signature: object, keys: Collection[Key]) -> bool:
    if not isinstance(signature, str) or len(signature) > MAX_SIGNATURE:
        return False
    decoded = _decoded(signature)
    return decoded is not None and any(key.verifies(decoded, data) for key in keys)


def _decoded(text: object) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        return None


def _object(document: dict[str, object], key: str) -> dict[str, object]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}
