"""Our own tokens: short-lived JWTs (RFC 7519) with the claims of distribution's specification.

https://distribution.github.io/distribution/spec/auth/jwt/
"""

import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

import jwt

from proxy.access.keys import Keys
from proxy.access.logins import Login
from proxy.access.principals import Method
from proxy.core.errors import Denied, Unauthorized

ISSUER: Final = "millpond"
ALGORITHM: Final = "ES256"
MAX_TOKEN: Final = 8000
"""Characters. Clients send it in a header of at most 8,190."""

LEEWAY: Final = 5
"""Seconds. The tokens are from this host; its clock may step back a little."""

_REQUIRED: Final = ("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "access")
Entry = dict[str, Any]
"""An entry of the claim ``access``: type, name, actions, and for a repository the ``target``."""


class OwnTokens:
    """Signs and verifies the tokens of ``/-/token``."""

    def __init__(self, keys: Keys, ttl: float) -> None:
        self._keys = keys
        self.ttl = ttl
        """Seconds that a token is valid."""

    def issue(self, login: Login | None, access: Sequence[Entry]) -> tuple[str, int]:
        """Return a token for a login (None: anonymous), and the seconds that it is valid.

        Raises ``Denied`` for a login whose groups do not fit into a token.
        """
        now, key = int(time.time()), self._keys.current
        seconds = self._seconds(login, now)
        claims: Entry = {
            "iss": ISSUER,
            "sub": "",
            "aud": ISSUER,
            "iat": now,
            "nbf": now,
            "exp": now + seconds,
            "jti": secrets.token_urlsafe(12),
            "access": list(access),
        }
        if login is not None and login.user is not None:
            claims |= {
                "sub": login.user,
                "method": login.method.name,
                "groups": sorted(login.groups),
                "credential": login.credential_id,
                "fingerprint": login.fingerprint,
            }
        if login is not None and login.caller is not None:
            claims["caller"] = login.caller
        token = jwt.encode(claims, key.private, ALGORITHM, {"kid": key.kid})
        if len(token) > MAX_TOKEN:
            raise Denied("the login has more groups in access.rules than fit into a token")
        return token, seconds

    def is_own(self, token: str) -> bool:
        """Return True if the token names a key of ours; it may still be forged."""
        return len(token) <= MAX_TOKEN and self._keys.get(_header(token).get("kid")) is not None

    def verify(self, token: str) -> Login:
        """Return the login of a token. Raises ``Unauthorized``.

        The caller checks that the credential behind it has not been revoked.
        """
        key = self._keys.get(_header(token).get("kid")) if len(token) <= MAX_TOKEN else None
        if key is None:
            raise Unauthorized("the token is not from this registry, or too old")
        try:
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[ALGORITHM],
                audience=ISSUER,
                issuer=ISSUER,
                leeway=LEEWAY,
                options={"require": list(_REQUIRED)},
            )
            return _login(claims)
        except jwt.ExpiredSignatureError:
            raise Unauthorized("the token has expired") from None
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, RecursionError):
            raise Unauthorized("the token is not valid") from None

    def _seconds(self, login: Login | None, now: int) -> int:
        """Return how long a token is valid: not longer than the credential behind it."""
        if login is None or login.ends is None:
            return int(self.ttl)
        return max(1, min(int(self.ttl), int(login.ends - now)))


def _login(claims: Entry) -> Login:
    entries = [entry for entry in claims["access"] if entry["type"] == "repository"]
    scopes = frozenset(entry["target"] for entry in entries if "pull" in entry["actions"])
    user: str = claims["sub"]
    caller: str | None = claims.get("caller")
    if not user:
        method = Method.ANONYMOUS if caller is None else Method.CALLER
        return Login(None, method, claims["exp"], scopes=scopes, caller=caller)
    return Login(
        user,
        Method[claims["method"]],
        claims["exp"],
        groups=frozenset(claims["groups"]),
        credential_id=claims["credential"],
        fingerprint=claims["fingerprint"],
        scopes=scopes,
        caller=caller,
    )


def _header(token: str) -> Entry:
    """Return the header, which is not verified; empty if malformed."""
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return {}
