"""The public keys of an issuer (RFC 7517), found by OpenID Connect Discovery 1.0 and cached.

The last good keys stay in force while the issuer does not answer.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from yarl import URL

from proxy.core.errors import RegistryError, UpstreamUnavailable
from proxy.core.tolerant_json import as_list, read_object
from proxy.runtime.singleflight import SingleFlight

Fetch = Callable[[str], Awaitable[bytes]]
"""Returns the document at a URL, of bounded size. Raises ``RegistryError``."""

FRESH_SECONDS: Final = 3600.0
"""After this time the keys are fetched again, in the background."""

RETRY_SECONDS: Final = 30.0
"""The minimum time between two fetches, whatever clients send."""

MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
_TYPES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_DISCOVERY: Final = "/.well-known/openid-configuration"

log = structlog.get_logger(__name__)


class JWKS:
    """The keys of one issuer."""

    def __init__(self, issuer: str, fetch: Fetch, before: "JWKS | None" = None) -> None:
        """``before`` has the keys from before a reload."""
        self.issuer: Final = issuer
        self._fetch = fetch
        self._keys: list[dict[str, Any]] = []
        self._fetched = self._attempted = float("-inf")
        if before is not None:
            self._keys, self._fetched, self._attempted = before.known
        self._fetches: SingleFlight[None] = SingleFlight("keys of an issuer")

    async def get(self, kid: object, algorithm: str) -> jwt.PyJWK | None:
        """Return the key for an id and an algorithm, None if the issuer has no such key."""
        found = self._find(kid, algorithm)
        if found is None:
            await self._refresh()
            found = self._find(kid, algorithm)
        elif time.monotonic() - self._fetched > FRESH_SECONDS and self._may_fetch():
            self._fetches.start("keys", self._load)
        return found

    @property
    def known(self) -> tuple[list[dict[str, Any]], float, float]:
        """The keys, and the times of the last good fetch and of the last one."""
        return self._keys, self._fetched, self._attempted

    async def close(self) -> None:
        """Stop fetching."""
        await self._fetches.close()

    async def _refresh(self) -> None:
        if self._fetches.is_running("keys") or self._may_fetch():
            await self._fetches.do("keys", self._load)

    def _may_fetch(self) -> bool:
        return time.monotonic() - self._attempted >= RETRY_SECONDS

    async def _load(self) -> None:
        """Fetch the keys; a failure is logged and changes nothing."""
        self._attempted = time.monotonic()
        try:
            keys = await self._fetched_keys()
        except RegistryError as error:
            log.warning("keys of an issuer not fetched", issuer=self.issuer, error=error.message)
            return
        self._keys, self._fetched = keys, time.monotonic()
        log.info("keys of an issuer fetched", issuer=self.issuer, keys=len(keys))

    async def _fetched_keys(self) -> list[dict[str, Any]]:
        base = self.issuer.rstrip("/")
        document = read_object(await self._fetch(base + _DISCOVERY))
        if document.get("issuer") != self.issuer:
            raise UpstreamUnavailable("the issuer's configuration names another issuer")
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not _is_safe(url, self.issuer):
            raise UpstreamUnavailable("the issuer's configuration has no usable jwks_uri")
        keys = as_list(read_object(await self._fetch(url)).get("keys"))[:MAX_KEYS]
        found = [key for key in keys if isinstance(key, dict)]
        if not found:
            raise UpstreamUnavailable("the issuer lists no keys")
        return found

    def _find(self, kid: object, algorithm: str) -> jwt.PyJWK | None:
        """Return the key of an id; without an id, the only key of the algorithm's type."""
        kind = _TYPES[algorithm[:2]]
        fitting = [
            key
            for key in self._keys
            if key.get("kty") == kind
            and key.get("use", "sig") == "sig"
            and key.get("alg", algorithm) == algorithm
            and (kid is None or key.get("kid") == kid)
        ]
        if len(fitting) != 1:
            return None
        return _parse(fitting[0], algorithm)


def _parse(key: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    """Return a usable key; None if it is malformed or too short."""
    try:
        parsed = jwt.PyJWK(key, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(parsed.key, RSAPublicKey) and parsed.key.key_size < MIN_RSA_BITS:
        return None
    return parsed


def _is_safe(url: str, issuer: str) -> bool:
    """Return True if an address is https, or http like the issuer's own."""
    try:
        target = URL(url)
    except ValueError:
        return False
    return bool(target.host) and target.scheme in ("https", URL(issuer).scheme)
