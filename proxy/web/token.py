"""The token endpoint ``/-/token``, where clients exchange credentials for a token of ours.

GET with Basic credentials (https://distribution.github.io/distribution/spec/auth/token/), and the
POST of OAuth 2 (…/spec/auth/oauth/). There are no refresh tokens: a client keeps its password or
access token, which can be revoked. An access token or ID token is accepted in place of one.

Without credentials, a client gets an anonymous token. Wrong credentials are an error only without
``scope``, as a login sends them. With a scope they get an anonymous token too: a node sends its
login for Docker Hub to a mirror, and would bypass a mirror that refuses it.
"""

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs

import structlog
from aiohttp.web import BaseRequest, RequestPayloadError, Response, StreamResponse

from proxy.access.audit import AuditLog
from proxy.access.authenticator import Authenticator
from proxy.access.credentials import Basic, Bearer, basic, parse
from proxy.access.identity import Certificate
from proxy.access.logins import Login
from proxy.access.own_tokens import Entry, OwnTokens
from proxy.access.principals import Method, Principal
from proxy.access.rules import Action
from proxy.core.errors import (
    Denied,
    RateLimited,
    RegistryError,
    RequestInvalid,
    TooManyFailures,
    Unauthorized,
    Unsupported,
)
from proxy.core.names import parse_repo
from proxy.core.routing import Router
from proxy.web import audit_events
from proxy.web.gate import TOKEN_PATH, Guards, presented
from proxy.web.pacing import PacedResponse

MAX_FORM: Final = 32 * 1024
MAX_FIELDS: Final = 100
MAX_SCOPES: Final = 50
MAX_GRANTED: Final = 3000
"""Characters of the claim ``access``."""
FORM_SECONDS: Final = 10.0
_FORM: Final = "application/x-www-form-urlencoded"
_CATALOG: Final = "registry:catalog:*"

log = structlog.get_logger(__name__)
_Fields = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request: its credentials, in order, and the requested scopes."""

    authorization: str | None
    form: "_Fields"
    scopes: tuple[str, ...]
    ns: str | None

    @property
    def repositories(self) -> list[str]:
        """The repositories in the scopes."""
        parts = (scope.split(":") for scope in self.scopes)
        return [":".join(part[1:-1]) for part in parts if part[0] == "repository"]


class TokenEndpoint:
    """Answers ``/-/token``."""

    def __init__(
        self,
        guards: Guards,
        authenticator: Authenticator,
        own: OwnTokens,
        router: Router,
        audit: AuditLog,
    ) -> None:
        self._audit = audit
        self._access, self._limits, _, self._callers = guards
        self._authenticator = authenticator
        self._own = own
        self._router = router

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request. Raises nothing but cancellation."""
        try:
            return await self._answer(request)
        except RegistryError as error:
            return _failed(error)
        except Exception:
            log.exception("token request failed unexpectedly")
            return _failed(RegistryError("internal error"))

    async def _answer(self, request: BaseRequest) -> Response:
        asked = await _read(request)
        certificate = presented(request).certificate
        login = await self._log_in(asked, request, certificate)
        principal = self._principal(login, request, certificate)
        await self._admit(request, principal)
        if login is not None and self._audit.is_on:
            self._audit.record(audit_events.of_login(request, principal, None))
        self._access.preview(principal, Action.CONNECT, None).enforce()
        granted = self._granted(principal, asked, request.host)
        if login is not None:
            login = replace(login, groups=self._access.named(login.groups))
        token, seconds = self._own.issue(login, granted)
        return _document(
            {
                "token": token,
                "access_token": token,
                "expires_in": seconds,
                "issued_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "scope": " ".join(_shown(entry) for entry in granted),
            }
        )

    async def _log_in(
        self, asked: _Asked, request: BaseRequest, certificate: Certificate | None
    ) -> Login | None:
        """Return the login of the first credentials that are right, None for an anonymous client.

        containerd sends the pull secret in the form, and the headers of hosts.toml too. One of them
        may be a login for Millpond, and the other one for the upstream: then both are used.

        Raises ``Unauthorized`` or ``TooManyFailures`` for a client that tests its login.
        """
        failure: Unauthorized | TooManyFailures | None = None
        upstream = self._callers.upstream(asked.repositories, request.host, asked.ns)
        caller: Login | None = None
        for read in (_form_credentials, _header_credentials):
            credentials: Basic | Bearer | None = None
            try:
                credentials = read(asked)
                wanted = upstream if _may_be_for_upstream(credentials, asked) else None
                login = await self._authenticator.log_in(credentials, request.remote, wanted)
                _check_exchange(login)
                if login is not None and login.method is Method.CALLER:
                    caller = caller or await self._tested(login, asked, upstream)
                    continue
            except (Unauthorized, TooManyFailures) as error:
                failure = failure or error
                if not asked.scopes:
                    await self._authenticator.slow_down(credentials, request.remote)
            else:
                if login is not None:
                    return login if caller is None else replace(login, caller=caller.caller)
        if caller is not None:
            return caller
        if failure is not None and self._audit.is_on:
            self._audit.record(audit_events.of_login(request, None, failure))
        anonymous = self._principal(None, request, certificate)
        may_stay = self._access.preview(anonymous, Action.CONNECT, None).is_allowed
        if failure is not None and not (asked.scopes and may_stay):
            await self._admit(request, anonymous)
            raise failure
        return None

    async def _tested(self, login: Login, asked: _Asked, upstream: str | None) -> Login:
        """Return a login that refers to credentials for an upstream.

        Without a scope, as ``docker login`` asks, upstream tests it first. Raises ``Unauthorized``.
        """
        assert login.caller is not None
        assert upstream is not None
        if not asked.scopes:
            try:
                await self._callers.log_in(login.caller, upstream)
            except Denied as error:
                raise Unauthorized(error.message) from None
        return login

    async def _admit(self, request: BaseRequest, principal: Principal) -> None:
        """Return when it is the client's turn. Raises ``RateLimited``.

        This comes after the login, because users have limits of their own: anonymous requests and
        wrong passwords from an address delay no user behind it.
        """
        client = self._limits.client(principal)
        if client is None:
            return
        try:
            await client.admit()
        except RateLimited as error:
            if self._audit.is_on:
                self._audit.record(audit_events.of_login(request, principal, error))
            raise

    def _principal(
        self, login: Login | None, request: BaseRequest, certificate: Certificate | None
    ) -> Principal:
        found = self._authenticator.principal(login, request.remote, certificate)
        return self._access.complete(found)

    def _granted(self, principal: Principal, asked: _Asked, host: str) -> list[Entry]:
        """Return the granted part of the scopes, as much as fits into a token."""
        granted: list[Entry] = []
        room = MAX_GRANTED
        for scope in asked.scopes:
            entry = self._entry(principal, scope, host, asked.ns)
            if entry is None:
                continue
            room -= len(json.dumps(entry))
            if room < 0:
                break
            granted.append(entry)
        return granted

    def _entry(self, principal: Principal, scope: str, host: str, ns: str | None) -> Entry | None:
        """Return the granted part of a scope, None for nothing, which is not an error."""
        if scope == _CATALOG:
            is_granted = self._access.preview(principal, Action.CATALOG, None).is_allowed
            return {"type": "registry", "name": "catalog", "actions": ["*"]} if is_granted else None
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind != "repository" or not {"pull", "*"}.intersection(actions.split(",")):
            return None
        try:
            target = self._router.resolve(parse_repo(name), host, ns)
        except RegistryError:  # the request for the image says what is wrong with the name
            return None
        if not self._access.preview(principal, Action.PULL, target).is_allowed:
            return None
        return {"type": kind, "name": name, "actions": ["pull"], "target": str(target)}


async def _read(request: BaseRequest) -> _Asked:
    """Return the parsed request. Raises ``RequestInvalid`` or ``Unsupported``."""
    if request.method not in ("GET", "POST"):
        problem = f"{request.method} {TOKEN_PATH}: use GET or POST"
        raise Unsupported(problem, allowed=("GET", "POST"))
    form = await _form(request) if request.method == "POST" else {}
    given = [*request.query.getall("scope", []), *form.get("scope", [])]
    scopes = tuple(dict.fromkeys(scope for line in given for scope in line.split()))
    if len(scopes) > MAX_SCOPES:
        raise RequestInvalid(f"more than {MAX_SCOPES} scopes in one request")
    ns = request.query.get("ns") or None
    return _Asked(request.headers.get("Authorization"), form, scopes, ns)


async def _form(request: BaseRequest) -> _Fields:
    if request.content_type != _FORM:
        raise RequestInvalid(f"a POST needs a body of type {_FORM}")
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_SECONDS):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > MAX_FORM:
                    raise RequestInvalid(f"the form is longer than {MAX_FORM} bytes")
        return parse_qs(body.decode(), max_num_fields=MAX_FIELDS, errors="strict")
    except (TimeoutError, ValueError, RequestPayloadError):
        raise RequestInvalid("the form is incomplete or malformed") from None


def _form_credentials(asked: _Asked) -> Basic | Bearer | None:
    """Return the credentials in a form (RFC 6749 §4.3.2, §6)."""
    if not asked.form:
        return None
    match _field(asked.form, "grant_type"):
        case "password":
            return basic(_field(asked.form, "username"), _field(asked.form, "password"))
        case "refresh_token":
            return parse(f"Bearer {_field(asked.form, 'refresh_token')}")
        case _:
            raise RequestInvalid("grant_type must be password or refresh_token")


def _may_be_for_upstream(credentials: Basic | Bearer | None, asked: _Asked) -> bool:
    """Return True for a user with a password, and for an identity token in a form."""
    return isinstance(credentials, Basic) or bool(asked.form and credentials is not None)


def _header_credentials(asked: _Asked) -> Basic | Bearer | None:
    return parse(asked.authorization)


def _check_exchange(login: Login | None) -> None:
    """Raise ``Unauthorized`` for a token of ours: exchanged again and again, it would never end."""
    if login is not None and login.scopes is not None:
        raise Unauthorized("a token of this registry is not exchanged for another one")


def _field(form: _Fields, name: str) -> str:
    return form.get(name, [""])[0]


def _shown(entry: Entry) -> str:
    return f"{entry['type']}:{entry['name']}:{','.join(entry['actions'])}"


def _failed(error: RegistryError) -> Response:
    """Return an error as distribution's clients show it, and with the fields of OAuth 2."""
    headers = error.headers()
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Basic realm="millpond"'
    document = json.loads(error.body())
    document["error"] = {400: "invalid_request", 401: "invalid_client"}.get(error.status, "error")
    document["error_description"] = document["details"] = error.message
    return _document(document, status=error.status, headers=headers)


def _document(
    document: dict[str, object], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return PacedResponse(
        status=status,
        body=json.dumps(document).encode(),
        headers={
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            **(headers or {}),
        },
    )
