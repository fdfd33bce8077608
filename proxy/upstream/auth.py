"""How one registry wants to be asked: challenges, tokens and their life, and whom to trust.

Distribution token specification (``docs/content/spec/auth/token.md``), RFC 7617. A token is asked
for once however many wait, kept until 90 % of its life, and never sent anywhere but upstream.
"""

import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import structlog
from cachetools import LRUCache
from publicsuffixlist import PublicSuffixList
from yarl import URL

from proxy.core.errors import (
    CredentialsRejected,
    Denied,
    TooManyRequests,
    UpstreamFailure,
    UpstreamUnavailable,
)
from proxy.core.tolerant_json import read_object
from proxy.runtime.singleflight import SingleFlight
from proxy.runtime.ttl_cache import TTLCache
from proxy.upstream.addresses import is_address
from proxy.upstream.challenge import Challenge, parse_challenges
from proxy.upstream.providers import Credentials, Provider

DEFAULT_LIFE: Final = 60.0
"""Seconds that a token lives when its server does not say."""

LONGEST_LIFE: Final = 7 * 86400.0
MAX_SCOPES: Final = 10_000
MAX_TOKENS: Final = 2000
"""Kept at once, so that long ones from a hostile token server take no more than 32 MB."""

MAX_TOKEN: Final = 16 * 1024
MAX_SCOPE: Final = 1024
MAX_REALM: Final = 2048
MAX_HOST: Final = 253
"""Characters (RFC 1035 §2.3.4)."""

_USED_LIFE: Final = 0.9
_SUFFIXES: Final = PublicSuffixList()

log = structlog.get_logger(__name__)


class TokenAnswer(NamedTuple):
    """What a token server said."""

    status: int
    body: bytes
    retry_after: float | None = None


FetchToken = Callable[[URL, str | None], Awaitable[TokenAnswer]]
"""GET a URL with an ``Authorization`` value or without; raises ``UpstreamFailure``."""


class Authorizer:
    """Keeps one registry's challenge and tokens."""

    def __init__(
        self, url: URL, provider: Provider, auth_hosts: Sequence[str], fetch: FetchToken
    ) -> None:
        self._url = url
        self._provider = provider
        self._auth_hosts = frozenset(auth_hosts)
        self._fetch = fetch
        self._challenge: Challenge | None = None
        self._scopes: LRUCache[str, str] = LRUCache(MAX_SCOPES)
        self._tokens: TTLCache[str] = TTLCache(MAX_TOKENS)
        self._asking: SingleFlight[str] = SingleFlight("token")

    async def header(self, scope: str) -> str | None:
        """Return the ``Authorization`` to send now; None before the first challenge."""
        if self._challenge is None:
            return None
        return await self._answer(self._challenge, self._scopes.get(scope, scope))

    async def learn(self, challenges: Sequence[str], scope: str) -> str:
        """Return the ``Authorization`` that a 401's challenge lines ask for.

        Raises ``Denied`` when they ask for what we do not have, ``CredentialsRejected`` when they
        refuse what we have.
        """
        known = {challenge.scheme: challenge for challenge in parse_challenges(challenges)}
        challenge = known.get("bearer") or known.get("basic")
        if challenge is None:
            raise Denied(f"{self._url.host} refuses access and asks for no credentials we know")
        asked = challenge.parameters.get("scope", "")
        if (
            asked.startswith("repository:") and len(asked) <= MAX_SCOPE
        ):  # a registry under a path knows its names otherwise
            self._scopes[scope] = asked
        answer = await self._answer(challenge, self._scopes.get(scope, scope))
        self._challenge = challenge
        return answer

    async def forget(self, scope: str) -> None:
        """Drop the token for ``scope``: upstream refused it."""
        if self._challenge is not None:
            scope = self._scopes.pop(scope, scope)
            await self._tokens.delete(_key(self._challenge, scope))

    async def refused(self) -> UpstreamFailure | Denied:
        """Return the error for a 401 that followed our best answer."""
        if await self._provider.credentials() is None:
            return Denied(f"{self._url.host} does not let the anonymous pull this")
        if self._challenge is not None and self._challenge.scheme == "basic":
            log.error("credentials rejected", upstream=self._url.host)
            return CredentialsRejected(f"{self._url.host} rejects the configured credentials")
        return Denied(f"{self._url.host} does not let the configured credentials pull this")

    async def close(self) -> None:
        """End what is being asked."""
        await self._asking.close()

    async def _answer(self, challenge: Challenge, scope: str) -> str:
        if challenge.scheme == "basic":
            credentials = await self._provider.credentials()
            if credentials is None:
                raise Denied(f"{self._url.host} wants credentials, and none are configured")
            return _basic(credentials)
        key = _key(challenge, scope)
        token = await self._tokens.get(key)
        if token is None:
            token = await self._asking.do(key, lambda: self._ask(challenge, scope, key))
        return f"Bearer {token}"

    async def _ask(self, challenge: Challenge, scope: str, key: str) -> str:
        realm = self._realm(challenge)
        credentials = await self._provider.credentials()
        if credentials is not None and not self._trusts(realm):
            raise CredentialsRejected(
                f"{self._url.host} sends us to {realm.host} for a token, which is not trusted with "
                f"its credentials; if it should be, add it to this upstream's auth_hosts"
            )
        query = [("scope", scope)]
        if service := challenge.parameters.get("service"):
            query.insert(0, ("service", service))
        answer = await self._fetch(
            realm.extend_query(query), None if credentials is None else _basic(credentials)
        )
        if answer.status != 200:
            raise self._no_token(answer, realm, anonymous=credentials is None)
        token, life = _read_token(answer.body, realm)
        await self._tokens.set(key, token, life * _USED_LIFE)
        return token

    def _realm(self, challenge: Challenge) -> URL:
        realm = read_realm(challenge.parameters.get("realm", ""))
        secure = realm.scheme == "https" or (realm.scheme == "http" == self._url.scheme)
        if not realm.host or realm.user or not secure:
            raise UpstreamUnavailable(f"{self._url.host} names no usable token server")
        return realm

    def _trusts(self, realm: URL) -> bool:
        """Tell whether our credentials may go there (CVE-2026-33540 is to answer yes always)."""
        host, own = realm.host or "", self._url.host or ""
        if host == own or host in self._auth_hosts:
            return True
        return shares_domain(host, own)

    def _no_token(
        self, answer: TokenAnswer, realm: URL, *, anonymous: bool
    ) -> UpstreamFailure | Denied:
        said = f"{realm.host} answers {answer.status} when asked for a token"
        match answer.status:
            case 401 if not anonymous:
                log.error("credentials rejected", upstream=self._url.host, realm=realm.host)
                return CredentialsRejected(f"{said}: the configured credentials are rejected")
            case 401 | 403:
                return Denied(said)
            case 429:
                return TooManyRequests(said, retry_after=answer.retry_after)
            case _:
                return UpstreamUnavailable(said)


def read_realm(text: str) -> URL:
    """Return a realm's address, empty if it is none.

    One with other letters than ASCII is none (RFC 9110 §4.1), and would be slow to encode.
    """
    try:
        return URL(text if text.isascii() and len(text) <= MAX_REALM else "")
    except ValueError:
        return URL()


def shares_domain(host: str, own: str) -> bool:
    """Return True if both names belong to one registrable domain.

    Addresses belong to none, nor does a name of one label: two such hosts share nothing.
    """
    if is_address(host) or is_address(own) or max(len(host), len(own)) > MAX_HOST:
        return False
    domain = _SUFFIXES.privatesuffix(own)
    return domain is not None and domain == _SUFFIXES.privatesuffix(host)


def _read_token(body: bytes, realm: URL) -> tuple[str, float]:
    """Return the token and its life in seconds."""
    document = read_object(body)
    token = document.get("token") or document.get("access_token")
    expires_in = document.get("expires_in")
    known = isinstance(expires_in, int | float) and 0 < expires_in <= LONGEST_LIFE
    life = float(str(expires_in)) if known else DEFAULT_LIFE
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise UpstreamUnavailable(f"{realm.host} answers with something that is no token")
    if len(token) > MAX_TOKEN:
        raise UpstreamUnavailable(f"{realm.host} answers with a token of over {MAX_TOKEN} bytes")
    return token, life if life > 0 else DEFAULT_LIFE


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _key(challenge: Challenge, scope: str) -> str:
    parameters = challenge.parameters
    return f"{parameters.get('realm')} {parameters.get('service')} {scope}"
