"""Who a client is, and what it may do: asked on every path before content or state is shown.

``AllowAll`` is today's only rule set: everybody may pull, and only the operator may see names of
content under ``/-/`` or change something there. A decision is a pure function that never waits, so
the response cache can ask for each request. Knows no HTTP but the value of ``Authorization``.
"""

import hmac
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple, Protocol

from proxy.core.errors import Denied, RegistryError, Unauthorized
from proxy.core.names import Target
from proxy.runtime.executors import in_thread


class Action(Enum):
    """What a client wants to do."""

    CONNECT = auto()
    """Check that this is a registry, at ``/v2/``."""
    PULL = auto()
    """Read manifests, blobs, tags or referrers of a repository: the target."""
    CATALOG = auto()
    """List repositories."""
    OBSERVE = auto()
    """Read health, metrics, and statistics without names of content."""
    OPERATE = auto()
    """See names of content under ``/-/``, or change something there."""


class Principal(NamedTuple):
    """A client: its address, and whether it has proven that it is the operator.

    ``refusal`` says why it is not the operator, for a client that tried to be.
    """

    address: str | None
    is_operator: bool = False
    refusal: RegistryError | None = None


OPERATOR = Principal(None, is_operator=True)
"""The client of the admin socket: only the owner of the cache's directory can connect."""


class Decision(NamedTuple):
    """Whether an action is allowed: ``refusal`` None, or the error for the client."""

    refusal: RegistryError | None = None

    def enforce(self) -> None:
        """Return if the action is allowed. Raises ``Denied`` or ``Unauthorized``."""
        if self.refusal is not None:
            raise self.refusal


class AccessRules(Protocol):
    """A set of rules."""

    def allow(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        """Decide; ``target`` None for actions that concern no single repository."""


class AllowAll:
    """Everybody may pull; only the operator may operate."""

    def allow(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        """Refuse ``OPERATE`` to everybody but the operator."""
        del target
        if action is not Action.OPERATE or principal.is_operator:
            return _ALLOWED
        return Decision(principal.refusal or Denied("only the operator may do this"))


_ALLOWED = Decision()


class AdminAccess:
    """Access to ``/-/`` over TCP: the rules, and the token that makes a client the operator."""

    def __init__(self, rules: AccessRules, token_file: Path | None) -> None:
        self.rules = rules
        self._file = token_file

    def use(self, token_file: Path | None) -> None:
        """Read the token from this file from now on; None: over TCP there is no operator."""
        self._file = token_file

    async def identify(self, address: str | None, authorization: str) -> Principal:
        """Return who sends ``Authorization: Bearer <token>``; the file is read each time."""
        if (file := self._file) is None:
            return Principal(
                address,
                refusal=Denied(
                    "this needs the admin socket in the cache's directory, or a token: "
                    "set admin.token_file"
                ),
            )
        try:
            token = (await in_thread(file.read_bytes)).strip()
        except OSError as error:
            reason = f"the file of admin.token_file cannot be read: {error.strerror}"
            return Principal(address, refusal=Denied(reason))
        given = authorization.encode("utf-8", "surrogateescape")
        if token and hmac.compare_digest(given, b"Bearer " + token):
            return Principal(address, is_operator=True)
        reason = "this needs the admin token: Authorization: Bearer …"
        return Principal(address, refusal=Unauthorized(reason))
