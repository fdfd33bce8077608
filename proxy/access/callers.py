"""Logins of clients for upstreams with ``credentials: caller``, temporarily and only in memory.

Our own tokens and the principals carry only a reference, a keyed hash. So after a restart the
reference of a token is invalid, and its client logs in again.
"""

import hashlib
import secrets
import time
from typing import Final

from cachetools import LRUCache

from proxy.access.credentials import Basic, Bearer
from proxy.access.failures import Failures
from proxy.upstream.credentials import IDENTITY_TOKEN, Credential
from proxy.upstream.credentials.caller import ANONYMOUS, Caller

MAX_CALLERS: Final = 10_000
KEPT_SECONDS: Final = 3600.0
"""How long a login is kept after its last use."""


class Callers:
    """The logins by reference; at the limit the least recently used one is dropped."""

    def __init__(self) -> None:
        self.failures: Final = Failures()
        """Logins that upstreams have rejected."""
        self._secret = secrets.token_bytes(32)
        self._known: LRUCache[str, tuple[Caller, float]] = LRUCache(MAX_CALLERS)

    def add(self, upstream: str, credentials: Basic | Bearer) -> Caller:
        """Keep a login for an upstream. A Bearer token is an identity token (oauth.md)."""
        if isinstance(credentials, Bearer):
            credential = Credential(IDENTITY_TOKEN, credentials.token)
        else:
            credential = Credential(credentials.user, credentials.password)
        text = f"{upstream}\0{credential.username}\0{credential.password}"
        digest = hashlib.blake2b(text.encode(), key=self._secret, digest_size=32)
        caller = Caller(digest.hexdigest(), upstream, credential)
        self._known[caller.key] = caller, time.monotonic() + KEPT_SECONDS
        return caller

    def get(self, key: str) -> Caller | None:
        """Return a login, and keep it for longer; None if it is not kept any more."""
        caller, until = self._known.get(key, (None, 0.0))
        if caller is None or time.monotonic() >= until:
            self._known.pop(key, None)
            return None
        self._known[key] = caller, time.monotonic() + KEPT_SECONDS
        return caller

    def of(self, key: str | None, upstream: str) -> Caller:
        """Return the login with which a client asks an upstream; without one, anonymous."""
        caller = None if key is None else self.get(key)
        return ANONYMOUS if caller is None or caller.upstream != upstream else caller
