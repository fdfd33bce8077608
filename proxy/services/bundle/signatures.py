"""Signs and verifies text with Ed25519, in the format of ``ssh-keygen -Y`` (PROTOCOL.sshsig).

So other tools can verify a bundle: ``ssh-keygen -Y verify -f allowed -I lab -n millpond-bundle -s
contents.json.sig < contents.json``.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from proxy.core.errors import ConfigError, RequestInvalid

NAMESPACE: Final = "millpond-bundle"
"""The purpose of a signature: one for mail or Git is not valid for a bundle."""

MAX_SIGNATURE: Final = 8 * 1024
MAX_KEY: Final = 64 * 1024
_MAGIC: Final = b"SSHSIG"
_BEGIN: Final = "-----BEGIN SSH SIGNATURE-----"
_END: Final = "-----END SSH SIGNATURE-----"
_KIND: Final = b"ssh-ed25519"
_HASHES: Final = ("sha512", "sha256")
_WIDTH: Final = 70


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key, and its name for people."""

    key: Ed25519PublicKey
    name: str

    @property
    def fingerprint(self) -> str:
        """The fingerprint as ``ssh-keygen -l`` shows it."""
        digest = hashlib.sha256(_public_blob(self.key)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def new_key(comment: str) -> tuple[bytes, bytes]:
    """Return a new private key and its public key, as OpenSSH writes their files."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + f" {comment}\n".encode()


def write_key(path: Path, comment: str) -> str:
    """Write a new key and its public key, ``path`` with ``.pub``; return the fingerprint.

    Raises ``ConfigError`` if one of the files exists or cannot be written.
    """
    private, public = new_key(comment)
    public_path = path.with_name(f"{path.name}.pub")
    for file, content, mode in ((path, private, 0o600), (public_path, public, 0o644)):
        try:
            fd = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        except FileExistsError:
            raise ConfigError(f"{file} exists; a key is never overwritten") from None
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
        with os.fdopen(fd, "wb") as opened:
            opened.write(content)
    return _trusted(public, str(public_path)).fingerprint


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Return the key in an unencrypted OpenSSH file. Raises ``ConfigError``."""
    content = _read(path)
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = "it has a passphrase" if isinstance(error, TypeError) else "no OpenSSH private key"
        raise ConfigError(f"{path}: {reason}; make one with: millpond key new {path}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key")
    return key


def read_public_keys(path: Path) -> list[TrustedKey]:
    """Return the keys of a file in the format of ``*.pub``, one a line. Raises ``ConfigError``."""
    lines = (line.strip() for line in _read(path).splitlines())
    keys = [_trusted(line, str(path)) for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise ConfigError(f"{path}: holds no public key")
    return keys


def sign(message: bytes, key: Ed25519PrivateKey) -> str:
    """Return the signature of a message, armored."""
    public = _public_blob(key.public_key())
    signature = key.sign(_signed(message, _HASHES[0]))
    parts = (public, NAMESPACE.encode(), b"", _HASHES[0].encode())
    body = _MAGIC + (1).to_bytes(4, "big") + b"".join(map(_string, parts))
    body += _string(_string(_KIND) + _string(signature))
    text = base64.b64encode(body).decode()
    lines = [text[at : at + _WIDTH] for at in range(0, len(text), _WIDTH)]
    return "\n".join([_BEGIN, *lines, _END, ""])


def verify(message: bytes, armored: str, trusted: Iterable[TrustedKey]) -> TrustedKey:
    """Return the trusted key that signed a message. Raises ``RequestInvalid``."""
    public, signature, algorithm = _parsed(armored)
    for candidate in trusted:
        if _public_blob(candidate.key) != public:
            continue
        try:
            candidate.key.verify(signature, _signed(message, algorithm))
        except InvalidSignature:
            raise RequestInvalid("the signature does not match the contents") from None
        return candidate
    try:
        shown = TrustedKey(_key_of(public), "").fingerprint
    except ValueError:
        raise RequestInvalid("the signature has no Ed25519 key") from None
    raise RequestInvalid(f"it is signed by {shown}, which is not among the trusted keys")


def _parsed(armored: str) -> tuple[bytes, bytes, str]:
    """Return public key, signature and hash of an armored signature. Raises ``RequestInvalid``."""
    text = armored.strip()
    if len(text) > MAX_SIGNATURE or not (text.startswith(_BEGIN) and text.endswith(_END)):
        raise RequestInvalid("it has no SSH signature")
    try:
        body = base64.b64decode("".join(text[len(_BEGIN) : -len(_END)].split()), validate=True)
        public, namespace, _, algorithm, blob = _strings(_without_magic(body), 5)
        kind, signature = _strings(blob, 2)
    except (ValueError, binascii.Error):
        raise RequestInvalid("its signature cannot be parsed") from None
    if namespace != NAMESPACE.encode():
        raise RequestInvalid(f"its signature is not for {NAMESPACE}")
    if kind != _KIND or algorithm.decode(errors="replace") not in _HASHES:
        raise RequestInvalid("its signature is not of the kind ssh-ed25519 with SHA-512")
    return public, signature, algorithm.decode()


def _without_magic(body: bytes) -> bytes:
    """Return what follows the magic and the version. Raises ``ValueError``."""
    if body[:6] != _MAGIC or body[6:10] != (1).to_bytes(4, "big"):
        raise ValueError("another version")
    return body[10:]


def _signed(message: bytes, algorithm: str) -> bytes:
    """Return the bytes that are signed, which contain a hash of the message (PROTOCOL.sshsig)."""
    digest = hashlib.new(algorithm, message).digest()
    return _MAGIC + b"".join(map(_string, (NAMESPACE.encode(), b"", algorithm.encode(), digest)))


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def _strings(body: bytes, count: int) -> list[bytes]:
    """Return the strings that make up ``body``. Raises ``ValueError`` if there are others."""
    found: list[bytes] = []
    while body:
        size = int.from_bytes(body[:4], "big")
        if len(body) < 4 + size:
            raise ValueError("cut off")
        found.append(body[4 : 4 + size])
        body = body[4 + size :]
    if len(found) != count:
        raise ValueError("more or fewer parts")
    return found


def _public_blob(key: Ed25519PublicKey) -> bytes:
    return _string(_KIND) + _string(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def _key_of(blob: bytes) -> Ed25519PublicKey:
    kind, raw = _strings(blob, 2)
    if kind != _KIND:
        raise ValueError("another kind of key")
    return Ed25519PublicKey.from_public_bytes(raw)


def _trusted(line: bytes, where: str) -> TrustedKey:
    try:
        key = load_ssh_public_key(line)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{where}: holds no OpenSSH public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{where}: holds a key that is not Ed25519")
    words = line.decode(errors="replace").split(None, 2)
    return TrustedKey(key, words[2] if len(words) > 2 else where)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
