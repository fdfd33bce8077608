"""Access to ``/-/`` over TCP: the admin token, and users that the rules let administer."""

import hmac
from pathlib import Path

from proxy.access.control import AccessControl
from proxy.access.identity import Certificate
from proxy.access.principals import Method, Principal
from proxy.access.rules import Action
from proxy.core.errors import Denied, RegistryError, Unauthorized
from proxy.runtime.executors import in_thread


class AdminAccess:
    """Decides who may administer."""

    def __init__(self, access: AccessControl, token_file: Path | None) -> None:
        self._access = access
        self._file = token_file

    def use(self, token_file: Path | None) -> None:
        """Read the admin token from this file from now on; None: there is none."""
        self._file = token_file

    @property
    def logins(self) -> list[str]:
        """The kinds of login that may make a client the operator: ``token``, ``password``."""
        kinds = {"token": self._file is not None, "password": self._access.is_configured}
        return [kind for kind, is_there in kinds.items() if is_there]

    async def authorize(
        self, authorization: str | None, address: str | None, certificate: Certificate | None
    ) -> Principal:
        """Return the principal if it may administer. Raises ``Denied`` or ``Unauthorized``.

        ``Authorization: Bearer <token>`` with the token of the file makes a client the operator;
        the file is read each time.
        """
        refusal = await self._token_refusal(authorization)
        if refusal is None:
            principal = Principal(address, method=Method.ADMIN_TOKEN)
        elif self._access.is_configured:
            principal = await self._access.identify(authorization, address, certificate)
        else:
            principal = Principal(address)
        self.enforce(principal, refusal)
        return principal

    def observe(self, address: str | None) -> None:
        """Return if a client may read health, metrics and numbers. Raises ``RegistryError``."""
        self._access.decide(Principal(address), Action.OBSERVE, None).enforce()

    def enforce(self, principal: Principal, refusal: RegistryError | None = None) -> None:
        """Return if the principal may administer. Raises ``refusal``, if there is one, or its own.

        ``refusal`` is the reason why the client is not the operator.
        """
        decision = self._access.decide(principal, Action.OPERATE, None)
        if decision.is_allowed:
            return
        if refusal is not None and not self._access.is_configured:
            raise refusal
        decision.enforce()

    async def _token_refusal(self, authorization: str | None) -> RegistryError | None:
        """Return why this is not the admin token, None if it is."""
        if (file := self._file) is None:
            return Denied(
                "this needs the admin socket in the cache's directory, or a token: "
                "set admin.token_file"
            )
        try:
            token = (await in_thread(file.read_bytes)).strip()
        except OSError as error:
            return Denied(f"the file of admin.token_file cannot be read: {error.strerror}")
        given = (authorization or "").encode("utf-8", "surrogateescape")
        if token and hmac.compare_digest(given, b"Bearer " + token):
            return None
        return Unauthorized("this needs the admin token: Authorization: Bearer …")
