"""Public keys, and the signatures that they verify.

The key alone decides the algorithm; nothing in a signature does. The only module that imports
``cryptography``.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

MIN_RSA_BITS: Final = 2048

_CURVES: Final[dict[str, tuple[HashAlgorithm, ...]]] = {
    "secp256r1": (SHA256(),),
    "secp384r1": (SHA384(), SHA256()),  # cosign 2 hashes with SHA-256 for every key
}

_PADDINGS: Final = (
    padding.PKCS1v15(),
    padding.PSS(padding.MGF1(SHA256()), padding.PSS.AUTO),
)

_Key = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key; equal keys have equal fingerprints, the SHA-256 of their SPKI in DER."""

    fingerprint: str
    _key: _Key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return True if ``signature`` is one of ``data`` by this key."""
        key = self._key
        attempts: list[Callable[[], None]]
        if isinstance(key, ed25519.Ed25519PublicKey):
            attempts = [partial(key.verify, signature, data)]
        elif isinstance(key, ec.EllipticCurvePublicKey):
            attempts = [
                partial(key.verify, signature, data, ec.ECDSA(kind))
                for kind in _CURVES[key.curve.name]
            ]
        else:
            attempts = [partial(key.verify, signature, data, kind, SHA256()) for kind in _PADDINGS]
        return any(map(_accepts, attempts))


def read_key(pem: bytes) -> PublicKey:
    """Return the key of a PEM file. Raises ``ValueError``."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "no public key in PEM; it begins with -----BEGIN PUBLIC KEY-----"
        ) from None
    is_curve = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES
    is_rsa = isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS
    if not (is_curve or is_rsa or isinstance(key, ed25519.Ed25519PublicKey)):
        raise ValueError(
            "not a supported key: ECDSA P-256 and P-384, Ed25519, and RSA from 2048 bits are"
        )
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(hashlib.sha256(der).hexdigest(), key)  # type: ignore[arg-type]


def _accepts(verify: Callable[[], None]) -> bool:
    try:
        verify()
    except InvalidSignature:
        return False
    return True
