"""The client's own login, with which it pulls through an upstream with ``credentials: caller``.

A context variable carries the login, because every layer between ``web`` and the request to
upstream would only pass it on. Tasks inherit the context: downloads, prefetches, link checks and
checks of tags use the login of the client whose request began them. Work without a client, such as
repair, is anonymous.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from proxy.runtime.client_key import CLIENT_KEY
from proxy.upstream.credentials import Credential, PermanentCredentials


@dataclass(frozen=True, slots=True)
class Caller:
    """A client with its login for an upstream."""

    key: str
    """A keyed hash of the upstream and the credential; empty for anonymous clients."""
    upstream: str = ""
    """The only upstream that gets the credential."""
    credential: Credential | None = field(default=None, repr=False)
    """None: anonymous."""


ANONYMOUS: Final = Caller("")
_current: Final[ContextVar[Caller]] = ContextVar("caller", default=ANONYMOUS)


@contextmanager
def asking_as(caller: Caller) -> Iterator[None]:
    """Use the login of this client until the context ends, also in tasks that begin in it."""
    token, client_key = _current.set(caller), CLIENT_KEY.set(caller.key)
    try:
        yield
    finally:
        CLIENT_KEY.reset(client_key)
        _current.reset(token)


@dataclass(frozen=True, slots=True)
class CallerCredentials(PermanentCredentials):
    """The credential of the current client."""

    upstream: str
    kind: str = "caller"

    async def get(self, repository: str) -> Credential | None:
        """Return the client's credential for this upstream; None: anonymous."""
        caller = _current.get()
        return caller.credential if caller.upstream == self.upstream else None
