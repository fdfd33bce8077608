"""Signatures that authenticate replicas: HMAC-SHA256 (RFC 2104) with a shared secret.

A request is valid for one recipient, once, within ``WINDOW`` seconds. The times are those of Redis,
so that the clocks of the machines do not matter. The signature of a response includes the nonce of
its request.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final

from cachetools import TTLCache

HEADER: Final = "Millpond-Fleet"
"""Carries ``<time> <nonce> <mac>`` in a request, and a mac in its response."""

WINDOW: Final = 30.0
MAX_NONCES: Final = 100_000
MIN_SECRET: Final = 16
"""Bytes."""

_MAX_HEADER: Final = 200


class Signer:
    """Signs and verifies with one secret, for the replica at ``address``.

    ``now`` is the time of Redis in seconds.
    """

    def __init__(self, secret: bytes, address: str, now: Callable[[], float]) -> None:
        self._secret = secret
        self._address = address
        self._now = now
        self._seen: TTLCache[str, None] = TTLCache(MAX_NONCES, 2 * WINDOW, now)

    def __repr__(self) -> str:
        return "<Signer>"

    def sign(self, method: str, recipient: str, path: str) -> str:
        """Return the header of a request; ``path`` includes the query."""
        stamp, nonce = f"{self._now():.3f}", secrets.token_hex(16)
        return f"{stamp} {nonce} {self._mac('request', method, recipient, path, stamp, nonce)}"

    def verify(self, method: str, path: str, header: str | None) -> bool:
        """Return True for the header of a replica's request to this one, not seen before."""
        parts = [] if header is None or len(header) > _MAX_HEADER else header.split(" ")
        if len(parts) != 3:
            return False
        stamp, nonce, mac = parts
        expected = self._mac("request", method, self._address, path, stamp, nonce)
        if not hmac.compare_digest(expected.encode(), mac.encode("utf-8", "surrogateescape")):
            return False
        if abs(self._now() - float(stamp)) > WINDOW or nonce in self._seen:
            return False
        self._seen[nonce] = None
        return True

    def sign_response(self, header: str, *facts: object) -> str:
        """Return the header of a response with facts, to a request with ``header``."""
        return self._mac("response", header, *map(str, facts))

    def verify_response(self, header: str, proof: str | None, *facts: object) -> bool:
        """Return True if a replica signed these facts in response to a request."""
        expected = self.sign_response(header, *facts)
        return proof is not None and hmac.compare_digest(
            expected.encode(), proof.encode("utf-8", "surrogateescape")
        )

    def _mac(self, *parts: str) -> str:
        """Return the MAC over parts; each part has its length as a prefix, to be unambiguous."""
        message = b"".join(
            f"{len(part)}:{part}".encode("utf-8", "surrogateescape") for part in parts
        )
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
