"""Authorization of requests to one registry: challenges, tokens, and trusted token servers.

Sources: RFC 7617 (Basic), RFC 6750 (Bearer), and the token specification of Distribution,
https://distribution.github.io/distribution/spec/auth/token/. Who we are is the job of
``credentials``.
"""

from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Final, NamedTuple, Protocol

import structlog
from aiohttp import ClientResponse
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
from proxy.core.names import CATALOG
from proxy.core.tolerant_json import read_object
from proxy.runtime.singleflight import SingleFlight
from proxy.runtime.ttl_cache import TTLCache
from proxy.upstream.credentials import Credential, Credentials
from proxy.upstream.guard import is_address
from proxy.upstream.headers import Challenge, parse_challenges, retry_after
from proxy.upstream.transport import HTTPRequest, TokenRequest, Transport

DEFAULT_LIFE: Final = 60.0
"""Seconds that a token lives if the server does not say (token specification)."""

LONGEST_LIFE: Final = 7 * 86400.0
MAX_SCOPES: Final = 10_000
MAX_TOKENS: Final = 2000
"""Tokens in memory. At ``MAX_TOKEN`` each, a hostile token server can fill 32 MB."""

MAX_TOKEN: Final = 16 * 1024
MAX_SCOPE: Final = 1024
MAX_REALM: Final = 2048
MAX_HOST: Final = 253
"""Characters (RFC 1035 §2.3.4)."""

_USED_LIFE: Final = 0.9
"""Share of its life for which a token is used, so that none expires on its way."""

log = structlog.get_logger(__name__)


class _Asked(NamedTuple):
    """The target of a request: a repository, and the scope of a token for it."""

    repository: str
    scope: str


class TokenVault(Protocol):
    """Tokens that other replicas may use too. A ``use`` is secret; nothing raises."""

    async def get(self, use: str) -> tuple[str, float] | None:
        """Return the token for a use and its remaining seconds, None without one."""

    async def put(self, use: str, token: str, life: float) -> None:
        """Keep a token for its remaining ``life`` in seconds."""

    async def forget(self, use: str) -> None:
        """Drop a token that the registry refuses."""


class Authorizer:
    """Authorizes requests to one registry. ``auth_hosts`` are further trusted token servers.

    The registry sends a challenge with its first 401. From then on each request carries the
    required credential (Basic) or a token for the scope (Bearer). One request fetches a token for
    all that wait for it.
    """

    login: ClassVar[str] = "the configured credentials"
    """The name of the credentials in messages."""

    def __init__(
        self,
        transport: Transport,
        credentials: Credentials,
        auth_hosts: Sequence[str],
        vault: TokenVault | None = None,
    ) -> None:
        """``vault`` None: tokens are not shared."""
        self._transport = transport
        self._vault = vault
        self.credentials: Final = credentials
        self._host = transport.url.host or ""
        self._trusted = frozenset((*auth_hosts, self._host))
        self._challenge: Challenge | None = None
        self._scopes: LRUCache[str, str] = LRUCache(MAX_SCOPES)
        self._tokens: TTLCache[str] = TTLCache(MAX_TOKENS)
        self._fetches: SingleFlight[str] = SingleFlight("token")

    @property
    def identity(self) -> str:
        """The identity of the current requests, a key for tokens; empty if it never changes."""
        return ""

    @property
    def was_asked(self) -> bool:
        """The registry has challenged us, and got credentials."""
        return self._challenge is not None

    async def close(self) -> None:
        """Cancel the running requests for tokens and credentials."""
        await self._fetches.close()
        await self.credentials.close()

    async def send(self, request: HTTPRequest, repository: str = "") -> ClientResponse:
        """Return the response to a request that may pull ``repository``; the caller closes it.

        Without a repository it may do nothing in particular, as in ``docker login``.

        There are five cases:

        - The response is no refusal, or comes from a host that the registry redirected to. A
          challenge from there is never answered: it could ask for our credential.
        - We sent no authorization: the challenge is answered, and the request sent again.
        - The registry refuses a token, because it has expired or was revoked. The token is
          dropped and the request is sent without one, because a fresh 401 has the right challenge
          now. GHCR refuses an expired token with 403, others send 401.
        - The registry says ``insufficient_scope`` (RFC 6750 §3.1): a new token would not help.
        - The registry refuses our credential (Basic): it is renewed, if its source can do that.

        A 401 after an answered challenge is returned: ``refusal`` is its error. Raises
        ``Denied`` or ``UpstreamFailure``, ``CredentialsRejected`` among them.
        """
        transport, known = self._transport, self._challenge
        scope = scope_of(repository)
        asked = _Asked(repository, scope)
        sent = None if known is None else await self._authorization(known, asked)
        response = await transport.send(request, sent)
        if known and sent and transport.is_own(response) and _is_refusal(response, sent):
            await self._forget(known, asked._replace(scope=self._scopes.pop(scope, scope)))
            if any("insufficient_scope" in line for line in _challenge_lines(response)):
                return response
            await transport.drain(response)
            response = await transport.send(request)
        if response.status != 401 or not transport.is_own(response):
            return response
        await transport.drain(response)
        lines = _challenge_lines(response) or await self._base_challenge()
        sent = await self._answer(lines, asked)
        response = await transport.send(request, sent)
        if (
            response.status != 401
            or not sent.startswith("Basic ")
            or not transport.is_own(response)
        ):
            return response
        if (renewed := await self._renewed(repository, sent)) is None:
            return response
        await transport.drain(response)
        return await transport.send(request, renewed)

    async def forget_token(self, repository: str) -> None:
        """Drop the token for a repository, so that the token server decides again."""
        if self._challenge is not None:
            scope = scope_of(repository)
            asked = _Asked(repository, self._scopes.get(scope, scope))
            await self._forget(self._challenge, asked)

    async def _forget(self, challenge: Challenge, asked: _Asked) -> None:
        await self._tokens.delete(self._token_key(challenge, asked.scope))
        if self._vault is not None:
            credential = await self.credentials.get(asked.repository)
            await self._vault.forget(self._use(challenge, asked, credential))

    async def refusal(self, repository: str) -> UpstreamFailure | Denied:
        """Return the error for a 401 that the registry sent to an authorized request."""
        if await self.credentials.get(repository) is None:
            return Denied(f"{self._host} denies anonymous access to this")
        if self._challenge is not None and self._challenge.scheme == "basic":
            return self._rejected(f"{self._host} rejects {self.login}")
        return Denied(f"{self._host} denies {self.login} access to this")

    def _rejected(self, text: str) -> UpstreamFailure | Denied:
        """Return the error for wrong credentials, and log it for the operator."""
        log.error("credentials rejected", upstream=self._host, reason=text)
        return CredentialsRejected(text)

    async def _base_challenge(self) -> list[str]:
        """Return the challenge of ``/v2/``: some registries send it only there."""
        response = await self._transport.send(HTTPRequest("GET", self._transport.url / "v2" / ""))
        await self._transport.drain(response)
        return _challenge_lines(response)

    async def _answer(self, lines: Sequence[str], asked: _Asked) -> str:
        """Return the ``Authorization`` for a challenge, and store the challenge."""
        by_scheme = {challenge.scheme: challenge for challenge in parse_challenges(lines)}
        challenge = by_scheme.get("bearer") or by_scheme.get("basic")
        if challenge is None:
            raise Denied(f"{self._host} denies access without a challenge that Millpond supports")
        # A registry behind a path may know the repository under another name than we request.
        wanted = challenge.parameters.get("scope", "")
        if wanted.startswith("repository:") and len(wanted) <= MAX_SCOPE:
            self._scopes[asked.scope] = wanted
        answer = await self._authorization(challenge, asked)
        self._challenge = challenge
        return answer

    async def _authorization(self, challenge: Challenge, asked: _Asked) -> str:
        """Return our credential, or a token for the scope by the name that the registry uses."""
        if challenge.scheme == "basic":
            credential = await self.credentials.get(asked.repository)
            if credential is None:
                raise Denied(f"{self._host} requires credentials, and none are configured")
            if credential.is_identity_token:
                raise self._rejected(f"{self._host} accepts only passwords, no identity tokens")
            return credential.basic
        asked = asked._replace(scope=self._scopes.get(asked.scope, asked.scope))
        key = self._token_key(challenge, asked.scope)
        token = await self._tokens.get(key)
        if token is None:
            token = await self._fetches.do(key, lambda: self._fetch_token(challenge, asked))
        return f"Bearer {token}"

    async def _renewed(self, repository: str, refused: str) -> str | None:
        """Return another credential than the refused one, None if there is none (Basic)."""
        credential = await self.credentials.get(repository)
        if credential is not None and credential.basic == refused:
            credential = await self.credentials.renew(repository, credential)
        usable = credential is not None and credential.basic != refused
        return credential.basic if credential is not None and usable else None

    async def _fetch_token(self, challenge: Challenge, asked: _Asked) -> str:
        realm = read_realm(challenge.parameters.get("realm", ""))
        secure = ("https",) if self._transport.url.scheme == "https" else ("https", "http")
        if not realm.host or realm.user or realm.scheme not in secure:
            raise UpstreamUnavailable(f"{self._host} names no usable token server")
        credential = await self.credentials.get(asked.repository)
        if credential is not None and not self._is_trusted(realm.host or ""):
            raise CredentialsRejected(
                f"{self._host} sends us to {realm.host} for a token, which is not trusted with "
                f"its credentials; if it should be, add it to this upstream's auth_hosts"
            )
        use = self._use(challenge, asked, credential)
        key = self._token_key(challenge, asked.scope)
        if self._vault is not None and (known := await self._vault.get(use)) is not None:
            await self._tokens.set(key, *known)
            return known[0]
        token, life = await self._ask_token(realm, challenge, asked, credential)
        await self._tokens.set(key, token, life * _USED_LIFE)
        if self._vault is not None:
            await self._vault.put(use, token, life * _USED_LIFE)
        return token

    async def _ask_token(
        self, realm: URL, challenge: Challenge, asked: _Asked, credential: Credential | None
    ) -> tuple[str, float]:
        """Return a token from the token server, and its life in seconds."""
        question = {"service": challenge.parameters.get("service", ""), "scope": asked.scope}
        question = {name: value for name, value in question.items() if value}
        response, body = await self._transport.fetch_token(_request(realm, question, credential))
        if response.status == 401 and credential is not None:
            renewed = await self.credentials.renew(asked.repository, credential)
            if renewed != credential:
                request = _request(realm, question, renewed)
                response, body = await self._transport.fetch_token(request)
        if response.status != 200:
            raise self._token_error(response, is_anonymous=credential is None)
        return _read_token(body, realm)

    def _use(self, challenge: Challenge, asked: _Asked, credential: Credential | None) -> str:
        """Return the use of a token: the registry, the scope, and the identity."""
        login = "" if credential is None else f"{credential.basic} {credential.is_identity_token}"
        return f"{self._transport.url} {self._token_key(challenge, asked.scope)} {login}"

    def _token_key(self, challenge: Challenge, scope: str) -> str:
        parameters = challenge.parameters
        return f"{self.identity} {parameters.get('realm')} {parameters.get('service')} {scope}"

    def _is_trusted(self, host: str) -> bool:
        """Return True if a token server may see our credential.

        A registry chooses its realm freely, so a compromised one could collect credentials at any
        host (CVE-2026-33540). Trusted are its own host, other hosts of its registrable domain, as
        with auth.docker.io for registry-1.docker.io, and those that the operator lists.
        """
        return host in self._trusted or shares_domain(host, self._host)

    def _token_error(
        self, response: ClientResponse, *, is_anonymous: bool
    ) -> UpstreamFailure | Denied:
        host = response.url.host
        text = f"{host} answers {response.status} to a token request"
        match response.status:
            case 401 if not is_anonymous:
                return self._rejected(f"{text}: {self.login} are rejected")
            case 401 | 403:
                return Denied(text)
            case 429:
                return TooManyRequests(text, retry_after=retry_after(response.headers))
            case _:
                return UpstreamUnavailable(text)


def read_realm(text: str) -> URL:
    """Return the URL in a realm; an empty one if the text is none, or too long.

    A URL is ASCII (RFC 3986 §2). Other letters are refused, because encoding them is slow.
    """
    try:
        return URL(text if text.isascii() and len(text) <= MAX_REALM else "")
    except ValueError:
        return URL()


def shares_domain(host: str, own: str) -> bool:
    """Return True if both names belong to one registrable domain (https://publicsuffix.org).

    IP addresses and names of one label belong to none.
    """
    if is_address(host) or is_address(own) or max(len(host), len(own)) > MAX_HOST:
        return False
    domain = _suffixes().privatesuffix(own)
    return domain is not None and domain == _suffixes().privatesuffix(host)


@cache
def _suffixes() -> PublicSuffixList:
    """Return the list. Reading it takes 40 ms, and only credentials for a token server need it."""
    return PublicSuffixList()


def _is_refusal(response: ClientResponse, sent: str) -> bool:
    return response.status == 401 or (response.status == 403 and sent.startswith("Bearer "))


def scope_of(repository: str) -> str:
    """Return the scope of a token.

    Token specification, "Resource Scope Grammar".
    """
    if repository == CATALOG:
        return "registry:catalog:*"
    return f"repository:{repository}:pull" if repository else ""


def _challenge_lines(response: ClientResponse) -> list[str]:
    return response.headers.getall("WWW-Authenticate", [])


def _read_token(body: bytes, realm: URL) -> tuple[str, float]:
    """Return the token and its life in seconds."""
    document = read_object(body)
    token = document.get("token") or document.get("access_token")
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise UpstreamUnavailable(f"{realm.host} answers a token request without a token")
    if len(token) > MAX_TOKEN:
        raise UpstreamUnavailable(f"{realm.host} answers with a token of over {MAX_TOKEN} bytes")
    life = document.get("expires_in")
    if not isinstance(life, int | float) or not 0 < life <= LONGEST_LIFE:
        return token, DEFAULT_LIFE
    return token, float(life)


def _request(realm: URL, question: dict[str, str], credential: Credential | None) -> TokenRequest:
    """Return a token request: for an identity token a POST (Distribution, oauth.md), else a GET."""
    if credential is None or not credential.is_identity_token:
        authorization = None if credential is None else credential.basic
        return TokenRequest(realm.extend_query(question), authorization)
    grant = {"grant_type": "refresh_token", "refresh_token": credential.password}
    return TokenRequest(realm, form={**grant, **question, "client_id": "millpond"})
