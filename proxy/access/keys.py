"""The keys that sign our own tokens (ES256): in a file of the cache's directory, and rotated.

A new key signs for 30 days. After that it verifies for one more day, longer than any token lives.
"""

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.access.files import read_text, write_private
from proxy.core.errors import ConfigError
from proxy.core.tolerant_json import as_list, read_object

SIGNS_FOR: Final = 30 * 86400.0
VERIFIES_FOR: Final = SIGNS_FOR + 86400.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """A private key with its id; ``created`` is in Unix seconds."""

    kid: str
    created: float
    private: ec.EllipticCurvePrivateKey = field(repr=False)
    public: ec.EllipticCurvePublicKey = field(repr=False)


class Keys:
    """The keys of a file, which is created if it is missing or damaged.

    If it cannot be written, the keys are only in memory: tokens are then invalid after a restart,
    and clients get new ones.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keys = {key.kid: key for key in _read(file)}
        if not self._keys:
            self.rotate()

    @property
    def current(self) -> Key:
        """The key that signs now."""
        newest = max(self._keys.values(), key=lambda key: key.created)
        if time.time() - newest.created > SIGNS_FOR:
            return self.rotate()
        return newest

    def get(self, kid: object) -> Key | None:
        """Return the key of an id while it may verify."""
        key = self._keys.get(kid) if isinstance(kid, str) else None
        return None if key is None or time.time() - key.created > VERIFIES_FOR else key

    def rotate(self) -> Key:
        """Return a new key, with which the next tokens are signed.

        Writes a small file, once in 30 days.
        """
        key = _make()
        kept = [old for old in self._keys.values() if self.get(old.kid) is not None]
        self._keys = {one.kid: one for one in (*kept, key)}
        try:
            write_private(self._file, _render(self._keys.values()))
        except ConfigError as error:
            log.warning("keys of tokens not stored, a restart creates new ones", error=str(error))
        return key


def _make() -> Key:
    private = ec.generate_private_key(ec.SECP256R1())
    return Key(secrets.token_urlsafe(9), time.time(), private, private.public_key())


def _read(file: Path) -> list[Key]:
    """Return the keys of a file that are not from the future; none if it is missing or damaged."""
    if not file.exists():
        return []
    try:
        document = read_object(read_text(file).encode())
        keys = [_parse(entry) for entry in as_list(document.get("keys"))]
    except (ConfigError, ValueError, KeyError, TypeError):
        log.warning("keys of tokens unreadable, creating new ones", file=str(file))
        return []
    return [key for key in keys if key.created <= time.time()]


def _parse(entry: object) -> Key:
    if not isinstance(entry, dict):
        raise TypeError("not an object")
    private = serialization.load_pem_private_key(entry["pem"].encode(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError("not a key of an elliptic curve")
    return Key(entry["kid"], float(entry["created"]), private, private.public_key())


def _render(keys: Iterable[Key]) -> str:
    entries = [
        {
            "kid": key.kid,
            "created": key.created,
            "pem": key.private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode(),
        }
        for key in keys
    ]
    return json.dumps({"keys": entries}, indent=1) + "\n"
