"""Tokens of registries, shared by all replicas and encrypted in Redis.

A token is as secret as the login behind it. Its key in Redis and its bytes depend on the secret of
the fleet: without that secret, a reader of Redis learns nothing, and a writer can only remove
tokens.
"""

import hashlib
import hmac
import json
import secrets
from contextlib import suppress
from typing import Final

from proxy.core.errors import FleetUnavailable
from proxy.core.tolerant_json import read_object
from proxy.fleet.store import Store

MIN_SECONDS: Final = 5.0
"""A token with a shorter lifetime is useless to another replica."""

_NONCE_BYTES: Final = 12
"""Of AES-GCM (NIST SP 800-38D §5.2.1.1). Random: far fewer than 2**32 tokens have one key."""


class TokenVault:
    """Stores tokens with AES-256-GCM. Without Redis there are none."""

    def __init__(self, store: Store, secret: bytes) -> None:
        """Derive the keys from the secret of the fleet."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - slow to import
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

        keys = HKDF(SHA256(), 64, salt=None, info=b"millpond tokens 1").derive(secret)
        self._cipher = AESGCM(keys[:32])
        self._naming = keys[32:]
        self._invalid: Final = InvalidTag
        self._store = store

    def __repr__(self) -> str:
        return "<TokenVault>"

    async def get(self, use: str) -> tuple[str, float] | None:
        """Return the token for a use and its remaining seconds, None without one."""
        name = self._name(use)
        sealed = None
        with suppress(FleetUnavailable):
            sealed = await self._store.run("GET", name)
        if sealed is None:
            return None
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            opened = read_object(self._cipher.decrypt(nonce, text, name.encode()))
        except (self._invalid, ValueError):
            return None
        token, until = opened.get("token"), opened.get("until")
        if not isinstance(token, str) or not isinstance(until, int | float):
            return None
        left = until - self._store.now()
        return (token, left) if left > MIN_SECONDS else None

    async def put(self, use: str, token: str, life: float) -> None:
        """Keep a token for its remaining ``life`` in seconds."""
        if life <= MIN_SECONDS:
            return
        name, nonce = self._name(use), secrets.token_bytes(_NONCE_BYTES)
        text = json.dumps({"token": token, "until": self._store.now() + life}).encode()
        sealed = nonce + self._cipher.encrypt(nonce, text, name.encode())
        with suppress(FleetUnavailable):
            await self._store.run("SET", name, sealed, "PX", int(life * 1000))

    async def forget(self, use: str) -> None:
        """Forget a token that the registry refuses."""
        with suppress(FleetUnavailable):
            await self._store.run("DEL", self._name(use))

    def _name(self, use: str) -> str:
        mac = hmac.new(self._naming, use.encode("utf-8", "surrogateescape"), hashlib.sha256)
        return self._store.key("token", mac.hexdigest())
