"""Signatures of bundles, checked with OpenSSH in both directions."""

import subprocess
from pathlib import Path

import pytest

from proxy.core.errors import ConfigError, RequestInvalid
from proxy.services.bundle import signatures
from proxy.services.bundle.signatures import NAMESPACE, TrustedKey

MESSAGE = b'{"blobs": []}\n'


def keygen(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["ssh-keygen", *arguments], input=given, capture_output=True, check=False, timeout=30
    )


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    signatures.write_key(path, "outside")
    return path


def trusted(key: Path) -> list[TrustedKey]:
    return signatures.read_public_keys(key.with_name(f"{key.name}.pub"))


def test_openssh_verifies_our_signature(key: Path, tmp_path: Path) -> None:
    armored = signatures.sign(MESSAGE, signatures.read_private_key(key))
    (tmp_path / "sig").write_text(armored)
    public = key.with_name("key.pub").read_text().split()
    (tmp_path / "allowed").write_text(f"lab {public[0]} {public[1]}\n")
    words = ("-Y", "verify", "-f", str(tmp_path / "allowed"), "-I", "lab", "-n", NAMESPACE)
    done = keygen(*words, "-s", str(tmp_path / "sig"), given=MESSAGE)
    assert done.returncode == 0, done
    assert keygen(*words, "-s", str(tmp_path / "sig"), given=MESSAGE + b"x").returncode != 0


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"])
def test_we_verify_a_signature_of_openssh(key: Path, tmp_path: Path, algorithm: str) -> None:
    file = tmp_path / "contents.json"
    file.write_bytes(MESSAGE)
    options = ("-Y", "sign", "-f", str(key), "-n", NAMESPACE, "-O", f"hashalg={algorithm}")
    assert keygen(*options, str(file)).returncode == 0
    armored = file.with_suffix(".json.sig").read_text()
    assert signatures.verify(MESSAGE, armored, trusted(key)).name == "outside"


def test_the_fingerprint_is_that_of_openssh(key: Path) -> None:
    shown = keygen("-l", "-f", str(key.with_name("key.pub"))).stdout.decode().split()
    assert trusted(key)[0].fingerprint == shown[1]


def test_the_private_key_is_for_its_owner_alone_and_never_overwritten(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="never overwritten"):
        signatures.write_key(key, "again")


def test_another_message_is_refused(key: Path) -> None:
    armored = signatures.sign(MESSAGE, signatures.read_private_key(key))
    with pytest.raises(RequestInvalid, match="does not match the contents"):
        signatures.verify(MESSAGE + b" ", armored, trusted(key))


def test_a_key_that_is_not_trusted_is_named(key: Path, tmp_path: Path) -> None:
    armored = signatures.sign(MESSAGE, signatures.read_private_key(key))
    shown = trusted(key)[0].fingerprint
    signatures.write_key(tmp_path / "other", "other")
    with pytest.raises(RequestInvalid, match="not among the trusted keys") as error:
        signatures.verify(MESSAGE, armored, trusted(tmp_path / "other"))
    assert shown in error.value.message


def test_a_signature_for_another_purpose_is_refused(key: Path, tmp_path: Path) -> None:
    file = tmp_path / "contents.json"
    file.write_bytes(MESSAGE)
    keygen("-Y", "sign", "-f", str(key), "-n", "git", str(file))
    with pytest.raises(RequestInvalid, match="not for millpond-bundle"):
        signatures.verify(MESSAGE, file.with_suffix(".json.sig").read_text(), trusted(key))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-30],
        lambda text: text.replace("\n", "\n!", 1),
        lambda text: text.replace("U1NIU0lH", "U1NIU0lI"),
        lambda text: text[:200] + ("A" if text[200] != "A" else "B") + text[201:],
        lambda text: text * 100,
    ],
    ids=["empty", "cut", "not base64", "other magic", "one bit", "long"],
)
def test_damaged_signatures_are_refused(key: Path, damage: object) -> None:
    assert callable(damage)
    armored = signatures.sign(MESSAGE, signatures.read_private_key(key))
    with pytest.raises(RequestInvalid):
        signatures.verify(MESSAGE, damage(armored), trusted(key))


def test_every_bit_counts(key: Path) -> None:
    armored = signatures.sign(MESSAGE, signatures.read_private_key(key)).splitlines()
    for line in range(1, len(armored) - 1):
        for at in range(len(armored[line])):
            was = armored[line][at]
            other = "A" if was != "A" else "w"  # differs in bits that count before padding, too
            changed = armored[line][:at] + other + armored[line][at + 1 :]
            text = "\n".join([*armored[:line], changed, *armored[line + 1 :]])
            with pytest.raises(RequestInvalid):
                signatures.verify(MESSAGE, text, trusted(key))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no public key"),
        (b"# only a comment\n", "holds no public key"),
        (b"ssh-ed25519 AAAA nonsense\n", "holds no OpenSSH public key"),
        (b"nonsense\n", "holds no OpenSSH public key"),
        (b"listen: 127.0.0.1:5000\n", "holds no OpenSSH public key"),
    ],
)
def test_files_without_keys_say_so(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "lab.pub"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        signatures.read_public_keys(file)


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rsa"
    keygen("-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(path))
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        signatures.read_private_key(path)
    with pytest.raises(ConfigError, match="not Ed25519"):
        signatures.read_public_keys(tmp_path / "rsa.pub")


def test_a_key_with_a_passphrase_is_named(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    keygen("-q", "-t", "ed25519", "-N", "secret phrase", "-f", str(path))
    with pytest.raises(ConfigError, match="passphrase"):
        signatures.read_private_key(path)
