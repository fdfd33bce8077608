"""Signs webhooks (https://github.com/standard-webhooks/standard-webhooks, "Signature scheme")."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "whsec_"
_LEAST, _MOST = 24, 64


class Signer:
    """Signs with each of several keys."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    def sign(self, message: str, timestamp: int, body: bytes) -> str:
        """Return the header ``webhook-signature``: a signature by each key."""
        signed = f"{message}.{timestamp}.".encode() + body
        macs = (hmac.digest(key, signed, hashlib.sha256) for key in self._keys)
        return " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs)


def read_secrets(text: str) -> Signer:
    """Return a signer with the secrets of a file, one per line; ``#`` begins a comment.

    Raises ``ValueError`` that names the line, not the secret.
    """
    keys = [
        _key(number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not keys:
        raise ValueError("there is no secret in it")
    return Signer(keys)


def _key(number: int, line: str) -> bytes:
    try:
        key = base64.b64decode(line.strip().removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not line.strip().startswith(PREFIX) or not _LEAST <= len(key) <= _MOST:
        raise ValueError(
            f"line {number} is no secret; write {PREFIX} and {_LEAST} to {_MOST} random bytes in "
            f'base64: echo "{PREFIX}$(head -c 32 /dev/urandom | base64 -w0)"'
        )
    return key
