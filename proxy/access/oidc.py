"""ID tokens of OpenID Connect issuers as credentials (OpenID Connect Core 1.0 §3.1.3.7).

Only the configured algorithms are accepted, all of them asymmetric, and each only with a key of its
type. So neither ``none`` nor an HMAC with a public key is accepted.
"""

import re
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import jwt

from proxy.access.jwks import JWKS
from proxy.access.logins import PASSWORD_SECONDS, Login
from proxy.access.principals import Method
from proxy.core.errors import Unauthorized
from proxy.settings.access import OIDCIssuer

MAX_TOKEN: Final = 16 * 1024
MAX_GROUPS: Final = 500
MAX_NAME: Final = 256
LEEWAY: Final = 60
"""Seconds that the clocks of the issuer and this host may differ."""

_REQUIRED: Final = ("iss", "aud", "exp", "iat")
_CLAIM: Final = re.compile(r"\{([^{}]*)\}")
_Claims = Mapping[str, Any]


class Issuer:
    """Verifies the tokens of one issuer."""

    def __init__(self, settings: OIDCIssuer, keys: JWKS) -> None:
        self.url: Final = settings.issuer
        self.fingerprint: Final = _fingerprint(settings)
        self._settings = settings
        self.keys: Final = keys

    async def verify(self, token: str) -> Login:
        """Return the login of an ID token. Raises ``Unauthorized`` or ``Overloaded``.

        ``iat`` is required, ``nbf`` is checked if there is one: Core 1.0 does not define it, and
        several issuers omit it.
        """
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        if algorithm not in self._settings.algorithms:
            raise Unauthorized("the ID token has a signature of a kind that is not accepted")
        key = await self.keys.get(header.get("kid"), algorithm)
        if key is None:
            raise Unauthorized("the ID token is signed with a key that its issuer does not list")
        claims = jwt.decode(
            token,
            key.key,
            algorithms=[algorithm],
            audience=self._settings.audience,
            issuer=self.url,
            leeway=LEEWAY,
            options={"require": list(_REQUIRED)},
        )
        return self._login(claims)

    async def close(self) -> None:
        """Stop fetching keys."""
        await self.keys.close()

    def _login(self, claims: _Claims) -> Login:
        for name, wanted in self._settings.require.items():
            if _text(claims.get(name)) != wanted:
                raise Unauthorized(f"the ID token does not have the required claim {name}")
        return Login(
            _user(self._settings.user, claims),
            Method.OIDC,
            min(float(claims["exp"]), time.time() + PASSWORD_SECONDS),
            groups=_groups(claims, self._settings.groups_claim),
            credential_id=self.url,
            fingerprint=self.fingerprint,
            ends=float(claims["exp"]),
        )


async def verify(issuers: Sequence[Issuer], token: str) -> Login:
    """Return the login of an ID token of one of the issuers. Raises ``Unauthorized``."""
    if len(token) > MAX_TOKEN:
        raise Unauthorized("the ID token is too long")
    try:
        named = jwt.decode(token, options={"verify_signature": False}).get("iss")
        for issuer in issuers:
            if issuer.url == named:
                return await issuer.verify(token)
    except jwt.ExpiredSignatureError:
        raise Unauthorized("the ID token has expired") from None
    except jwt.InvalidAudienceError:
        raise Unauthorized("the ID token is for another audience") from None
    except (jwt.PyJWTError, TypeError, ValueError, OverflowError, RecursionError):
        raise Unauthorized("the ID token is not valid") from None
    raise Unauthorized("the token is from an issuer that is not configured")


def is_from(issuers: Sequence[Issuer], token: str) -> bool:
    """Return True if a token names one of the issuers; it may still be forged or expired."""
    try:
        named = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except (jwt.PyJWTError, TypeError, ValueError, OverflowError, RecursionError):
        return False
    return any(issuer.url == named for issuer in issuers)


def _fingerprint(settings: OIDCIssuer) -> str:
    """Return a value that changes with the settings of an issuer."""
    return blake2b(settings.model_dump_json().encode(), digest_size=12).hexdigest()


def _user(template: str, claims: _Claims) -> str:
    def value(found: re.Match[str]) -> str:
        text = _text(claims.get(found[1]))
        if not text or len(text) > MAX_NAME or not text.isprintable():
            raise Unauthorized(f"the ID token has no usable claim {found[1]}")
        return text

    return _CLAIM.sub(value, template)


def _groups(claims: _Claims, name: str | None) -> frozenset[str]:
    value = claims.get(name) if name is not None else None
    groups = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return frozenset(
        group for group in groups[:MAX_GROUPS] if isinstance(group, str) and len(group) <= MAX_NAME
    )


def _text(value: object) -> str | None:
    """Return a claim as text: issuers differ in whether ids and flags are strings."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case _:
            return None
