"""Public keys: those that are accepted, and that the key alone decides the algorithm."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import MD5, SHA1, SHA256, SHA512

from proxy.policies.keys import read_key
from tests.policies import signing
from tests.policies.signing import Signer

DATA = b"what is signed"


def test_equal_keys_are_equal() -> None:
    signer = signing.p256()
    first, second = read_key(signer.pem), read_key(b"a comment\n" + signer.pem)
    assert first == second
    assert hash(first) == hash(second)
    assert first != read_key(signing.p256().pem)


def test_rsa_may_sign_with_pss() -> None:
    signer = signing.rsa2048()
    pss = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH)
    signature = signer.key.sign(DATA, pss, SHA256())
    assert read_key(signer.pem).verifies(signature, DATA)
    assert not read_key(signer.pem).verifies(signature, DATA + b"!")


@pytest.mark.parametrize("kind", [SHA1, SHA512, MD5])
def test_other_hashes_are_refused(kind: type[SHA1 | SHA512 | MD5]) -> None:
    signer = signing.rsa2048()
    signature = signer.key.sign(DATA, padding.PKCS1v15(), kind())
    assert not read_key(signer.pem).verifies(signature, DATA)
    curve = signing.p256()
    if kind is not MD5:
        signature = curve.key.sign(DATA, ec.ECDSA(kind()))
        assert not read_key(curve.pem).verifies(signature, DATA)


@pytest.mark.parametrize("signature", [b"", b"\x00", b"\x30\x00", b"x" * 100_000])
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    for signer in (signing.p256(), signing.rsa2048(), signing.ed25519_key()):
        assert not read_key(signer.pem).verifies(signature, DATA)


P521 = Signer(ec.generate_private_key(ec.SECP521R1()))
SHORT = Signer(rsa.generate_private_key(65537, 1024))


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        (b"", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (SHORT.pem, "not a supported key"),
        (P521.pem, "not a supported key"),
    ],
    ids=["empty", "broken", "short RSA", "P-521"],
)
def test_keys_that_are_not_supported_are_refused(pem: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_key(pem)
