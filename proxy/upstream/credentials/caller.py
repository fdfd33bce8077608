"""The client's own login, with which it pulls through an upstream with ``credentials: caller``.

The login goes down in a context variable, because every layer between ``web`` and the request to
upstream would only pass it on. Tasks inherit the context: downloads, prefetches, link checks and
checks of tags ask upstream as the client whose request began them. Work that no client began, such
as repair, asks anonymously.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from proxy.runtime.behalf import BEHALF
from proxy.upstream.credentials import Credential, Lasting


@dataclass(frozen=True, slots=True)
class Caller:
    """A client as the upstream knows it."""

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
    """Ask upstream as this client until the context ends, also in tasks that begin in it."""
    token, behalf = _current.set(caller), BEHALF.set(caller.key)
    try:
        yield
    finally:
        BEHALF.reset(behalf)
        _current.reset(token)


@dataclass(frozen=True, slots=True)
class CallerCredentials(Lasting):
    """The credential of the client that asks."""

    upstream: str
    kind: str = "caller"

    async def get(self, repository: str) -> Credential | None:
        """Return the credential that the client gave for this upstream; None: anonymous."""
        caller = _current.get()
        return caller.credential if caller.upstream == self.upstream else None
