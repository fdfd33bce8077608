"""Verifies credentials: passwords, access tokens, ID tokens and Millpond's own tokens.

A password may be a password of the htpasswd file, an access token, or an ID token; the last two
are valid with any user name. A Bearer token is one of ours, an access token, or an ID token.
"""

import time
from contextlib import suppress
from functools import partial
from typing import Final

from proxy.access import htpasswd, oidc
from proxy.access.api_tokens import PREFIX
from proxy.access.callers import Callers
from proxy.access.credentials import Basic, Bearer, is_jwt, parse
from proxy.access.failures import Failures
from proxy.access.identity import Certificate
from proxy.access.logins import PASSWORD_SECONDS, Login, LoginCache
from proxy.access.own_tokens import OwnTokens
from proxy.access.principals import Method, Principal
from proxy.access.sources import Sources
from proxy.core.errors import Overloaded, TooManyFailures, Unauthorized
from proxy.runtime.executors import Pool, in_thread
from proxy.runtime.singleflight import SingleFlight

MAX_WAITING: Final = 100
"""Passwords that wait to be hashed. Beyond that clients get 503 and should retry."""


_NOBODY: Final = Login(None, Method.ANONYMOUS, 0.0)


class Authenticator:
    """The ``Identifier`` of a proxy with access control. Close it when done."""

    def __init__(self, sources: Sources, own: OwnTokens, callers: Callers) -> None:
        self._sources = sources
        self._own = own
        self._callers = callers
        self._cache = LoginCache()
        self._failures = Failures()
        self._hashes: SingleFlight[Login] = SingleFlight("password")

    def use(self, sources: Sources, ttl: float) -> None:
        """Accept the credentials of other settings from now on; ``ttl`` is that of our tokens.

        Requests that fetch keys of the old settings end by themselves.
        """
        self._sources = sources
        self._own.ttl = ttl
        self._cache.clear()

    async def close(self) -> None:
        """Stop work in the background."""
        await self._hashes.close()
        await self._sources.close()

    def seal(self, authorization: str) -> bytes:
        """Return the keyed hash of a value of ``Authorization``."""
        return self._cache.digest(authorization)

    def recognise(
        self, credential: bytes | None, address: str | None, certificate: Certificate | None
    ) -> Principal | None:
        """Return the principal if it is known without waiting; None: await ``identify``."""
        if credential is None:
            return self.principal(None, address, certificate)
        if self._sources.has_changed():
            return None
        presented = credential, address, certificate
        if (known := self._cache.recent(presented)) is not None:
            return known if self._is_kept(known.caller) else None
        login = self._cache.get(credential)
        if login is None or not self._is_kept(login.caller):
            return None
        principal = self.principal(login, address, certificate)
        self._cache.put_recent(presented, login, principal)
        return principal

    async def identify(
        self,
        authorization: str | None,
        address: str | None,
        certificate: Certificate | None,
        upstream: str | None = None,
    ) -> Principal:
        """Return the principal. Raises ``Unauthorized`` or ``Overloaded``.

        A client that failed too often gets ``Unauthorized`` too, because containerd repeats a
        request at once after a 429.
        """
        credentials, generation = parse(authorization), self._cache.generation
        try:
            login = await self.log_in(credentials, address, upstream)
        except TooManyFailures as error:
            raise Unauthorized(error.message) from None
        except Unauthorized:
            await self.slow_down(credentials, address)
            raise
        if authorization and login is not None:
            self._cache.put(self._cache.digest(authorization), login, generation)
        return self.principal(login, address, certificate)

    async def log_in(
        self, credentials: Basic | Bearer | None, address: str | None, upstream: str | None = None
    ) -> Login | None:
        """Return the login of verified credentials, None without credentials.

        Credentials that are not ours are kept for ``upstream``, which will verify them.

        Raises ``Unauthorized``, ``TooManyFailures`` or ``Overloaded``.
        """
        if credentials is None:
            return None
        if self._sources.has_changed():
            await self._sources.reload()
            self._cache.clear()
        if upstream is not None:
            return await self._ours_or_for(upstream, credentials, address)
        if isinstance(credentials, Bearer):
            return await self._bearer(credentials.token)
        return await self._basic(credentials, address)

    async def slow_down(self, credentials: Basic | Bearer | None, address: str | None) -> None:
        """Wait after a failed login, the longer the more often this client failed."""
        if isinstance(credentials, Basic):
            await self._failures.slow_down(address, credentials.user)

    def principal(
        self, login: Login | None, address: str | None, certificate: Certificate | None
    ) -> Principal:
        """Return the client with this login. Without a user, its certificate identifies it."""
        if login is not None and login.user is not None:
            return Principal(
                address,
                login.user,
                groups=login.groups,
                method=login.method,
                credential_id=login.credential_id,
                scopes=login.scopes,
                caller=login.caller,
            )
        login = login or _NOBODY
        if (name := self._sources.certificate_name(certificate)) is not None:
            method = Method.CERTIFICATE
            return Principal(address, name, method=method, scopes=login.scopes, caller=login.caller)
        return Principal(address, method=login.method, scopes=login.scopes, caller=login.caller)

    async def _bearer(self, token: str) -> Login:
        if not is_jwt(token) or not self._own.is_own(token):
            return await self._token(token)
        login = self._own.verify(token)
        if not self._sources.is_current(login):
            raise Unauthorized("the credential behind the token was revoked")
        if not self._is_kept(login.caller):
            raise Unauthorized("the login behind the token is not kept any more; log in again")
        return login

    def _is_kept(self, caller: str | None) -> bool:
        return caller is None or self._callers.get(caller) is not None

    async def _ours_or_for(
        self, upstream: str, credentials: Basic | Bearer, address: str | None
    ) -> Login:
        """Return the login if the credentials are for Millpond, else one that refers to them.

        A wrong password of a Millpond user counts as a failure. Other credentials count only when
        upstream has rejected them. Our own tokens never go upstream, valid or not.
        """
        if isinstance(credentials, Bearer):
            if self._is_token_of_ours(credentials.token):
                return await self._bearer(credentials.token)
        elif self._sources.has_user(credentials.user) or self._is_token_of_ours(
            credentials.password
        ):
            with suppress(Unauthorized):
                return await self._basic(credentials, address)
            if self._is_token_of_ours(credentials.password):
                raise Unauthorized("the token is not valid")
        if isinstance(credentials, Basic):
            self._callers.failures.admit(address, credentials.user)
        caller = self._callers.add(upstream, credentials)
        return Login(None, Method.CALLER, 0.0, caller=caller.key)

    def _is_token_of_ours(self, text: str) -> bool:
        """Return True for an access token, a token of ours, or an ID token of a known issuer."""
        if text.startswith(PREFIX):
            return True
        return is_jwt(text) and (
            self._own.is_own(text) or oidc.is_from(self._sources.issuers, text)
        )

    async def _basic(self, credentials: Basic, address: str | None) -> Login:
        user, password = credentials.user, credentials.password
        key = self._cache.digest(f"{user}\0{password}")
        if (known := self._cache.get(key)) is not None:
            return known
        try:
            if is_jwt(password) or password.startswith(PREFIX):
                # Failures do not count: tokens cannot be guessed, and clients share a user name.
                return await self._token(password)
            self._failures.admit(address, user)
            login = await self._hashed(credentials, key)
        except Unauthorized:
            self._failures.add(address, user)
            raise
        self._failures.forget(address, user)
        return login

    async def _hashed(self, credentials: Basic, key: bytes) -> Login:
        """Return the login of a password, hashed once for all who wait. Raises ``Overloaded``."""
        flight = key, self._cache.generation  # not one that began before the file changed
        if len(self._hashes) >= MAX_WAITING and not self._hashes.is_running(flight):
            raise Overloaded("too many logins at a time; try again")
        return await self._hashes.do(flight, partial(self._password, credentials, key))

    async def _token(self, token: str) -> Login:
        """Return the login of an access token or an ID token. Raises ``Unauthorized``."""
        if is_jwt(token):
            return await oidc.verify(self._sources.issuers, token)
        tokens = self._sources.tokens
        found = None if tokens is None else tokens.value.find(token)
        if found is None:
            raise Unauthorized("the token is not known, has expired, or was revoked")
        again = time.time() + PASSWORD_SECONDS
        return Login(
            found.name,
            Method.TOKEN,
            again if found.expires is None else min(again, found.expires),
            groups=frozenset(found.groups),
            credential_id=found.name,
            fingerprint=found.fingerprint,
            ends=found.expires,
        )

    async def _password(self, credentials: Basic, key: bytes) -> Login:
        """Return the login of a password. Raises ``Unauthorized``."""
        user, generation = credentials.user, self._cache.generation
        users = None if self._sources.users is None else self._sources.users.value
        if users is None or not await in_thread(
            partial(htpasswd.matches, users, user, credentials.password), Pool.PASSWORD
        ):
            raise Unauthorized("the user or the password is wrong")
        login = Login(
            user,
            Method.PASSWORD,
            time.time() + PASSWORD_SECONDS,
            credential_id=user,
            fingerprint=users.fingerprint(user),
        )
        self._cache.put(key, login, generation)
        return login
