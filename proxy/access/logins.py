"""A verified credential, and the cache of them."""

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache

from proxy.access.identity import Certificate
from proxy.access.principals import Method, Principal

MAX_LOGINS: Final = 10_000
MAX_RECENT: Final = 4096
PASSWORD_SECONDS: Final = 300.0
"""How long a password counts as verified before it is hashed again."""

Presented = tuple[bytes, str | None, Certificate | None]
"""The key of a client's credential, its address and certificate."""


@dataclass(frozen=True, slots=True)
class Login:
    """The facts about a client that its verified credential proves."""

    user: str | None
    method: Method
    expires: float
    """Time until which no further check is needed, Unix seconds."""
    groups: frozenset[str] = frozenset()
    credential_id: str | None = None
    fingerprint: str | None = None
    """Fingerprint of the file's entry: our tokens are valid only while the entry is unchanged."""
    ends: float | None = None
    """Time at which the credential itself expires, Unix seconds; None: never."""
    scopes: frozenset[str] | None = None
    """Repositories to which one of our tokens is limited, as ``docker.io/library/alpine``."""
    caller: str | None = None
    """Reference to a login for an upstream: see ``callers``."""


class LoginCache:
    """Verified credentials by keyed hash, until they expire; at the limit the oldest is dropped.

    The key is random for each process, so that nothing in memory helps to guess a password.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._logins: LRUCache[bytes, Login] = LRUCache(MAX_LOGINS)
        self._recent: dict[Presented, tuple[float, Principal]] = {}
        self.generation = 0
        """Changes when the cache is cleared."""

    def digest(self, credential: str) -> bytes:
        """Return the key for a credential."""
        text = credential.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()

    def get(self, key: bytes) -> Login | None:
        """Return a login that has not expired."""
        login = self._logins.get(key)
        if login is not None and time.time() >= login.expires:
            del self._logins[key]
            return None
        return login

    def put(self, key: bytes, login: Login, generation: int) -> None:
        """Keep a login, unless the cache was cleared since ``generation``."""
        if generation == self.generation:
            self._logins[key] = login

    def recent(self, presented: Presented) -> Principal | None:
        """Return the principal that sent this before and is still logged in."""
        known = self._recent.get(presented)
        return known[1] if known is not None and time.time() < known[0] else None

    def put_recent(self, presented: Presented, login: Login, principal: Principal) -> None:
        """Cache the principal that sent this: a lookup is cheaper than building it again."""
        if len(self._recent) >= MAX_RECENT:
            self._recent.clear()
        self._recent[presented] = login.expires, principal

    def clear(self) -> None:
        """Drop all logins: a file or a setting has changed."""
        self._recent.clear()
        self._logins.clear()
        self.generation += 1
