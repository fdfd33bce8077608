"""Who may do what: the rules of ``access.rules``, as a pure function that never waits.

The first rule that matches decides. If none matches, the request is denied. Without rules, every
client that may connect may pull, and only the operator may administer.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Final, NamedTuple, Protocol

from proxy.access.principals import Principal
from proxy.core.errors import ConfigError, Denied, RegistryError, Unauthorized
from proxy.core.names import Target
from proxy.core.selection import NamePattern, Selector, allowing
from proxy.settings.access import Access, Rule


class Action(Enum):
    """An action that a client requests."""

    CONNECT = auto()
    """Check that this is a registry, at ``/v2/``."""
    PULL = auto()
    """Read manifests, blobs, tags or referrers of a repository: the target."""
    CATALOG = auto()
    """List repositories; each name needs ``PULL``."""
    OBSERVE = auto()
    """Read health, metrics, and statistics without names of content."""
    OPERATE = auto()
    """Read names of content under ``/-/``, or change something there."""


class Decision(NamedTuple):
    """Whether an action is allowed, and why."""

    is_allowed: bool
    text: str
    """The rule that decided, as configured, or the reason if no rule did."""
    rule: int | None = None
    """The number of that rule, from 1."""
    because: str | None = None
    """The configured reason of a denial, for the client."""
    login_helps: bool = False
    """The denied client is anonymous, and may be allowed as a user."""

    def enforce(self) -> None:
        """Return if the action is allowed. Raises ``Unauthorized`` or ``Denied``."""
        if self.is_allowed:
            return
        if self.login_helps:
            raise Unauthorized("authentication required")
        raise Denied(self.because or "access denied")


class AccessRules(Protocol):
    """A set of rules."""

    def decide(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        """Decide; ``target`` None for actions that concern no single repository."""


_OPERATOR: Final = Decision(is_allowed=True, text="the operator may do everything")
_OPEN: Final = Decision(is_allowed=True, text="no rules are configured")
_EVERYBODY: Final = Decision(is_allowed=True, text="every client may do this")
_UNKNOWN_CLIENT: Final = Decision(
    is_allowed=False, text="anonymous clients may not connect", login_helps=True
)
_OUT_OF_SCOPE: Final = Decision(
    is_allowed=False, text="the token is limited to other repositories", login_helps=True
)
_NO_ADMIN: Final = Decision(
    is_allowed=False, text="no rule matches", because="only the operator may do this"
)
_NO_MATCH: Final = Decision(is_allowed=False, text="no rule matches")


class Rules:
    """The rules of a configuration; ``selector`` parses patterns of images."""

    def __init__(self, access: Access, selector: Callable[[str], Selector]) -> None:
        """Raise ``ConfigError`` for a pattern of images that is none of repositories."""
        self._anonymous = access.anonymous
        self._has_login = access.is_configured
        compiled = [
            _compiled(number, rule, selector) for number, rule in enumerate(access.rules, 1)
        ]
        self._pull = [rule for rule in compiled if rule.action is Action.PULL]
        self._admin = [rule for rule in compiled if rule.action is Action.OPERATE]
        self._has_rules = bool(compiled)

    def decide(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        """Decide; ``target`` None for actions that concern no single repository.

        A denial by the rules applies with any token of the user, so another one does not help.
        """
        if principal.is_operator:
            return _OPERATOR
        decision = self._of_user(principal, action, target)
        if decision.is_allowed and _is_out_of_scope(principal, action, target):
            return _OUT_OF_SCOPE
        return decision

    def _of_user(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        """Return the decision about a principal, without the limits of its token."""
        if action is Action.OBSERVE:
            return _EVERYBODY
        if principal.user is None and not self._anonymous:
            return _UNKNOWN_CLIENT
        match action:
            case Action.PULL if target is not None and self._has_rules:
                return self._first(self._pull, principal, target, _NO_MATCH)
            case Action.OPERATE:
                return self._first(self._admin, principal, None, _NO_ADMIN)
            case Action.PULL:
                return _OPEN
            case _:
                return _EVERYBODY

    def _first(
        self,
        rules: "list[_Compiled]",
        principal: Principal,
        target: Target | None,
        otherwise: Decision,
    ) -> Decision:
        """Return the decision of the first rule that matches, else ``otherwise``."""
        matching = (rule.decision for rule in rules if rule.matches(principal, target))
        decision = next(matching, otherwise)
        if decision.is_allowed or principal.user is not None or not self._has_login:
            return decision
        return decision._replace(login_helps=True)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A rule: who and which repositories it matches, and what it decides."""

    action: Action
    decision: Decision
    images: tuple[Selector, ...]
    to: "tuple[_Entry, ...]"

    def matches(self, principal: Principal, target: Target | None) -> bool:
        """Return True for this principal and repository; None: the action concerns none."""
        if self.to and not any(entry.matches(principal) for entry in self.to):
            return False
        return target is None or any(image.covers(target) for image in self.images)


class _Entry(NamedTuple):
    """An entry of ``to``: names of the principal that a pattern must match."""

    names: Callable[[Principal], Iterable[str]]
    pattern: NamePattern

    def matches(self, principal: Principal) -> bool:
        """Return True if the pattern matches one of the names."""
        return any(map(self.pattern.matches, self.names(principal)))


def _is_out_of_scope(principal: Principal, action: Action, target: Target | None) -> bool:
    """Return True if the client's token is too limited for this; it needs another token."""
    if principal.scopes is None:
        return False
    is_other = action is Action.PULL and str(target) not in principal.scopes
    return is_other or action is Action.OPERATE


def _user(principal: Principal) -> tuple[str, ...]:
    return () if principal.user is None else (principal.user,)


_NAMES: Final[dict[str, Callable[[Principal], Iterable[str]]]] = {
    "user": _user,
    "group": lambda principal: principal.groups,
    "network": lambda principal: principal.networks,
}


def _compiled(number: int, rule: Rule, selector: Callable[[str], Selector]) -> _Compiled:
    parse = selector if rule.allow is None else partial(allowing, selector=selector)
    try:
        images = tuple(map(parse, rule.images))
    except RegistryError as error:
        raise ConfigError(f"access.rules: rule {number}: {error.message}") from None
    if not all(image.is_of_repositories for image in images):
        raise ConfigError(
            f"access.rules: rule {number}: rules are about repositories; leave tag and digest out"
        )
    is_allowed = rule.allow is not None
    decision = Decision(is_allowed, text=rule.text, rule=number, because=rule.because)
    action = Action.OPERATE if rule.is_admin else Action.PULL
    return _Compiled(action, decision, images, tuple(map(_entry, rule.to)))


def named_groups(rules: Iterable[Rule]) -> tuple[NamePattern, ...]:
    """Return the patterns of groups in rules."""
    return tuple(NamePattern.of(name) for rule in rules for name in rule.named("group"))


def _entry(text: str) -> _Entry:
    """Return an entry of ``to``; a name may contain colons, as in ``user:ci:acme/*``."""
    kind, _, name = text.partition(":")
    return _Entry(_NAMES[kind], NamePattern.of(name))
