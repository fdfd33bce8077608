"""Access to ``/-/`` over TCP: the admin token, and users that the rules let administer."""

import hmac
from pathlib import Path
from typing import Final

from proxy.access.api_tokens import PREFIX
from proxy.access.control import AccessControl
from proxy.access.credentials import is_jwt
from proxy.access.failures import Failures
from proxy.access.identity import Certificate
from proxy.access.principals import Method, Principal
from proxy.access.rules import Action
from proxy.core.errors import Denied, RegistryError, TooManyFailures, Unauthorized
from proxy.runtime.executors import in_thread

_ADMIN: Final = ""
"""The user under whose name wrong admin tokens are counted."""


class AdminAccess:
    """Decides who may administer."""

    def __init__(self, access: AccessControl, token_file: Path | None) -> None:
        self._access = access
        self._file = token_file
        self._failures = Failures()

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
        """Return the principal if it may administer.

        ``Authorization: Bearer <token>`` with the token of the file makes a client the operator;
        the file is read each time. Wrong ones are slowed down, as wrong passwords are.

        Raises ``Denied``, ``Unauthorized`` or ``TooManyFailures``.
        """
        refusal = await self._token_refusal(authorization, address)
        try:
            if refusal is None:
                principal = Principal(address, method=Method.ADMIN_TOKEN)
            elif self._access.is_configured:
                principal = await self._access.identify(authorization, address, certificate)
            else:
                principal = Principal(address)
            self.enforce(principal, refusal)
        except Unauthorized:
            if isinstance(refusal, TooManyFailures):
                raise refusal from None
            if _is_guess(authorization):
                await self._failures.slow_down(address, _ADMIN)
            raise
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

    async def _token_refusal(
        self, authorization: str | None, address: str | None
    ) -> RegistryError | None:
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
        try:
            return self._compared(authorization, token, address)
        except TooManyFailures as error:
            return error

    def _compared(
        self, authorization: str | None, token: bytes, address: str | None
    ) -> RegistryError | None:
        """Return why this is not the admin token, None if it is. Raises ``TooManyFailures``.

        Nothing is awaited between the look at earlier failures and the count of this one, so
        concurrent guesses are no way around the limit.
        """
        if _is_guess(authorization):
            self._failures.admit(address, _ADMIN)
        given = (authorization or "").encode("utf-8", "surrogateescape")
        if token and hmac.compare_digest(given, b"Bearer " + token):
            self._failures.forget(address, _ADMIN)
            return None
        if _is_guess(authorization):
            self._failures.add(address, _ADMIN)
        return Unauthorized("this needs the admin token: Authorization: Bearer …")


def _is_guess(authorization: str | None) -> bool:
    """Return True for a Bearer token that may be a guess.

    Access tokens and JWTs are random or signed. Administrators send them too, and they are
    compared with the admin token first.
    """
    scheme, _, token = (authorization or "").partition(" ")
    return scheme == "Bearer" and not token.startswith(PREFIX) and not is_jwt(token)
