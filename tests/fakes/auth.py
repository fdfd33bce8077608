"""Who may read what: challenges on the registry side, tokens on the token server's side."""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from tests.fakes.records import Record
from tests.fakes.replies import Reply, error, json_reply

Scheme = Literal["none", "basic", "bearer"]
Dialect = Literal["distribution", "hub", "ghcr", "gitlab", "nvcr"]

_SCOPE = re.compile(r"repository:(?P<name>[^ ]+):(?P<actions>[a-z*,]+)")
_SHUT = frozenset({"ghcr", "gitlab"})
_DEFAULT_LIFETIME = 60.0  # what the token spec says where expires_in is missing


@dataclass(slots=True)
class Auth:
    """The knobs; change any of them at any time.

    `users` maps names to passwords, `identity_tokens` refresh tokens to names, and `private` the
    repositories that not all may read to those who may. `realm` is `token` (the token server, on
    another port), `registry` (the same port) or any URL. `expires_in` None leaves the field out;
    `lifetime` is how long tokens really live, if that differs from what is announced (seconds).

    Dialects, that is what is said to those who may not read a repository, or it does not exist:
    `distribution`: a token without access, then 401 insufficient_scope (unknown ones: 404);
    `hub`: so for unknown ones too; `gitlab`: the token server says 403, to bad credentials too;
    `ghcr`: so too, and the registry answers any bad Authorization by 403 without challenge; `nvcr`:
    no service in challenges, and after expiry the challenge names another realm, which helps nobody.
    """

    scheme: Scheme = "none"
    users: dict[str, str] = field(default_factory=dict)
    private: dict[str, set[str]] = field(default_factory=dict)
    identity_tokens: dict[str, str] = field(default_factory=dict)
    anonymous: bool = True
    dialect: Dialect = "distribution"
    challenge: Literal["always", "ping", "never"] = "always"
    realm: str = "token"
    service: str | None = "fake.registry"
    expires_in: int | None = 300
    lifetime: float | None = None
    fields: tuple[str, ...] = ("token", "access_token")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is worth: the repositories it opens, until `expires` (seconds)."""

    user: str | None
    repositories: frozenset[str]
    expires: float


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the ports of one upstream are, as base URLs."""

    registry: str
    token: str
    cdn: str


class Authority:
    """Turns away at the registry's door, and issues the tokens that open it."""

    def __init__(
        self, auth: Auth, clock: Callable[[], float], known: Callable[[str], bool]
    ) -> None:
        self.auth = auth
        self._clock = clock
        self._known = known
        self._grants: dict[str, Grant] = {}
        self._issued = 0

    def revoke(self) -> None:
        """All tokens issued so far are worth nothing from now on."""
        self._grants.clear()

    def refuse(self, record: Record, at: Addresses) -> Reply | None:
        """The refusal a request to the registry gets, or None if it may pass."""
        if record.kind in {"token", "data"}:
            return None
        match self.auth.scheme:
            case "none":
                return None
            case "basic":
                return self._refuse_basic(record)
            case "bearer":
                return self._refuse_bearer(record, at)
            case unreachable:
                assert_never(unreachable)

    def issue(self, record: Record) -> Reply:
        """What the token server says (distribution: token.md for GET, oauth.md for POST)."""
        if record.path.startswith("/other/"):
            return error(401, "UNAUTHORIZED", "this realm knows nobody")
        user, valid = self._identify(record)
        if not valid and self.auth.dialect in _SHUT:
            return error(403, "DENIED", "denied")
        if not valid or (user is None and not self.auth.anonymous):
            return error(401, "UNAUTHORIZED", "incorrect username or password")
        asked = _scopes(record)
        granted = frozenset(name for name in asked if self._open_to(name, user))
        if self.auth.dialect in _SHUT and granted != asked:
            return error(403, "DENIED", "denied")
        return json_reply(self._token(user, granted))

    def _refuse_basic(self, record: Record) -> Reply | None:
        user, valid = _basic(record, self.auth.users)
        if not valid or user is None:
            return self._unauthorized(record, 'Basic realm="fake"')
        if record.repository is not None and not self._may(record.repository, user):
            return error(403, "DENIED")
        return None

    def _refuse_bearer(self, record: Record, at: Addresses) -> Reply | None:
        header = record.headers.get("Authorization")
        if header is None:
            return self._challenge(record, at)
        grant = self._grants.get(header.removeprefix("Bearer "))
        if grant is None or grant.expires <= self._clock():
            return self._refuse_token(record, at)
        if record.repository is not None and record.repository not in grant.repositories:
            return self._challenge(record, at, "insufficient_scope")
        return None

    def _refuse_token(self, record: Record, at: Addresses) -> Reply:
        if self.auth.dialect == "ghcr":
            return error(403, "DENIED", "denied")
        if self.auth.dialect == "nvcr":
            other = f'Bearer realm="{at.token}/other/token",service="registry"'
            return self._unauthorized(record, f'{other},error="invalid_token"')
        return self._challenge(record, at, "invalid_token")

    def _challenge(self, record: Record, at: Addresses, problem: str | None = None) -> Reply:
        homes = {"token": f"{at.token}/token", "registry": f"{at.registry}/token"}
        fields = {"realm": homes.get(self.auth.realm, self.auth.realm)}
        if self.auth.service is not None and self.auth.dialect != "nvcr":
            fields["service"] = self.auth.service
        if record.repository is not None:
            fields["scope"] = f"repository:{record.repository}:pull"
        if problem is not None:
            fields["error"] = problem
        said = ",".join(f'{name}="{value}"' for name, value in fields.items())
        return self._unauthorized(record, f"Bearer {said}")

    def _unauthorized(self, record: Record, challenge: str) -> Reply:
        reply = error(401, "UNAUTHORIZED", "authentication required")
        where = self.auth.challenge
        if where == "never" or (where == "ping" and record.kind != "ping"):
            return reply
        return reply.with_header("WWW-Authenticate", challenge)

    def _identify(self, record: Record) -> tuple[str | None, bool]:
        """The user (None: anonymous), and whether the credentials, if any, are right."""
        if record.method != "POST":
            return _basic(record, self.auth.users)
        form = record.form
        if form.get("grant_type") == "refresh_token":
            user = self.auth.identity_tokens.get(form.get("refresh_token", ""))
            return user, user is not None
        user = form.get("username")
        right = user is not None and self.auth.users.get(user) == form.get("password")
        return user, right

    def _may(self, repository: str, user: str | None) -> bool:
        readers = self.auth.private.get(repository)
        return readers is None or user in readers

    def _open_to(self, repository: str, user: str | None) -> bool:
        hidden = self.auth.dialect in {"hub", *_SHUT} and not self._known(repository)
        return self._may(repository, user) and not hidden

    def _token(self, user: str | None, repositories: frozenset[str]) -> dict[str, Any]:
        self._issued += 1
        token = f"token-{self._issued}-{user or 'anonymous'}"
        announced = _DEFAULT_LIFETIME if self.auth.expires_in is None else self.auth.expires_in
        lifetime = announced if self.auth.lifetime is None else self.auth.lifetime
        self._grants[token] = Grant(user, repositories, self._clock() + lifetime)
        document: dict[str, Any] = dict.fromkeys(self.auth.fields, token)
        if self.auth.expires_in is not None:
            document["expires_in"] = self.auth.expires_in
        return document


def _scopes(record: Record) -> frozenset[str]:
    """The repositories whose reading is asked for."""
    said = [*record.query.getall("scope", []), *record.form.getall("scope", [])]
    found = (_SCOPE.fullmatch(scope) for line in said for scope in line.split())
    return frozenset(scope["name"] for scope in found if scope and "pull" in scope["actions"])


def _basic(record: Record, users: dict[str, str]) -> tuple[str | None, bool]:
    header = record.headers.get("Authorization")
    if header is None:
        return None, True
    scheme, _, encoded = header.partition(" ")
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None, False
    return user, scheme.lower() == "basic" and users.get(user) == password
