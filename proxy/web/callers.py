"""Clients that pull with their own login, from upstreams with ``credentials: caller``."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

from proxy.access.callers import Callers
from proxy.access.principals import Principal
from proxy.core.errors import Denied, LoginRejected, NotFound, RegistryError, Unauthorized
from proxy.core.names import Repo, Route, Target
from proxy.core.routing import Router
from proxy.repository.confirmations import Confirmations
from proxy.upstream.credentials.caller import Caller, asking_as

_ANY: Final = Repo("any")
"""A repository without an upstream in its name, to find the upstream of such names."""


class CallerGate:
    """Provides the login of a client for an upstream, and whether the upstream has confirmed it."""

    def __init__(self, callers: Callers, confirmations: Confirmations, router: Router) -> None:
        self._callers = callers
        self._confirmations = confirmations
        self._router = router

    def upstream(self, repos: Iterable[str], host: str, ns: str | None) -> str | None:
        """Return the upstream that credentials are for; None: they can only be for Millpond.

        That is the upstream of the first repository with ``credentials: caller``; without
        repositories, as at a login, the one that ``ns``, the host or the default names.
        """
        for repo in tuple(repos) or (_ANY,):
            with suppress(RegistryError):
                found = self._router.resolve(Repo(repo), host, ns).upstream
                if self._confirmations.is_needed(found):
                    return found
        return None

    def is_needed(self, target: Target) -> bool:
        """Return True if the repository's upstream has ``credentials: caller``."""
        return self._confirmations.is_needed(target.upstream)

    def is_confirmed(self, principal: Principal, target: Target) -> bool:
        """Return True if a client may be answered from the cache now."""
        if principal.is_operator:
            return True
        caller = self._callers.of(principal.caller, target.upstream)
        return self._confirmations.is_confirmed(caller, target)

    @asynccontextmanager
    async def asking(
        self, principal: Principal, target: Target, route: Route
    ) -> AsyncIterator[None]:
        """Use the login of this client, which upstream has confirmed, until the context ends.

        A refusal later on ends the confirmation. Raises ``RegistryError`` if there is none.
        """
        caller = self._callers.of(principal.caller, target.upstream)
        with asking_as(caller):
            if not principal.is_operator:
                await self._confirm(principal, caller, target, route)
            try:
                yield
            except Denied as error:
                if error.was_forwarded and self._confirmations.is_needed(target.upstream):
                    self._confirmations.refuse(caller, target)
                raise

    async def _confirm(
        self, principal: Principal, caller: Caller, target: Target, route: Route
    ) -> None:
        """Return if a client may read a repository. Raises ``RegistryError``.

        A client without any login gets a challenge: upstream may permit more with a login.
        """
        try:
            await self._confirmations.confirm(caller, target, route)
        except (Denied, NotFound) as error:
            if caller.credential is None and principal.user is None:
                raise Unauthorized("authentication required") from None
            if isinstance(error, LoginRejected) and caller.credential is not None:
                self._callers.failures.add(principal.address, caller.credential.username)
            raise

    async def log_in(self, key: str, upstream: str) -> None:
        """Return if upstream accepts a login. Raises ``RegistryError``."""
        with asking_as(self._callers.of(key, upstream)):
            await self._confirmations.log_in(upstream)
