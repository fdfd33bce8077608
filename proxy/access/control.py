"""The interface of access control: identifies clients and decides by the current configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from proxy.access.identity import Certificate, Identifier
from proxy.access.memberships import Memberships
from proxy.access.principals import Principal
from proxy.access.rules import AccessRules, Action, Decision, Rules, named_groups
from proxy.core.names import Target
from proxy.core.selection import NamePattern, Selector
from proxy.runtime.metrics import CacheCounters
from proxy.settings.access import Access

MAX_DECISIONS: Final = 16_384

_anonymous = lru_cache(4096)(Principal)


@dataclass(frozen=True, slots=True)
class Policy:
    """The parsed configuration: rules, memberships, and whether clients are identified at all."""

    rules: AccessRules
    memberships: Memberships
    is_configured: bool
    groups: tuple[NamePattern, ...] = ()
    """Patterns of the groups that rules name."""

    @classmethod
    def of(cls, access: Access, selector: Callable[[str], Selector]) -> "Policy":
        """Return the policy of settings; ``selector`` parses patterns. Raises ``ConfigError``."""
        memberships = Memberships(access.networks, access.groups)
        rules, groups = DecisionCache(Rules(access, selector)), named_groups(access.rules)
        return cls(rules, memberships, access.is_configured, groups)


class DecisionCache:
    """Rules with a table of their decisions about pulls; at the limit the oldest is dropped."""

    def __init__(self, rules: AccessRules) -> None:
        self._rules = rules
        self._known: dict[object, Decision] = {}

    def decide(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        """Decide; ``target`` None for actions that concern no single repository."""
        if action is not Action.PULL or principal.is_operator:
            return self._rules.decide(principal, action, target)
        key = principal.user, principal.groups, principal.networks, principal.scopes, target
        decision = self._known.get(key)
        if decision is None:
            decision = self._rules.decide(principal, action, target)
            if len(self._known) >= MAX_DECISIONS:
                del self._known[next(iter(self._known))]
            self._known[key] = decision
        return decision


class AccessControl:
    """Identifies clients and decides what they may do."""

    def __init__(self, policy: Policy, identifier: Identifier, counters: CacheCounters) -> None:
        self._identifier = identifier
        self._counters = counters
        self._policy = policy

    def use(self, policy: Policy) -> None:
        """Replace the policy in one step."""
        self._policy = policy

    def identify_with(self, identifier: Identifier) -> None:
        """Identify clients with ``identifier`` from now on."""
        self._identifier = identifier

    def complete(self, principal: Principal) -> Principal:
        """Return the principal with its networks and configured groups."""
        return self._policy.memberships.complete(principal)

    def named(self, groups: frozenset[str]) -> frozenset[str]:
        """Return the groups of a login that rules name: a token needs no others."""
        patterns = self._policy.groups
        return frozenset(one for one in groups if any(each.matches(one) for each in patterns))

    @property
    def is_configured(self) -> bool:
        """Clients are identified; otherwise all clients are anonymous, whatever they send."""
        return self._policy.is_configured

    def sealed(self, authorization: str | None) -> bytes | None:
        """Return the keyed hash of ``Authorization`` for use in memory, None without one."""
        return self._identifier.seal(authorization) if authorization else None

    def recognise(
        self, credential: bytes | None, address: str | None, certificate: Certificate | None
    ) -> Principal | None:
        """Return the principal if it is known without waiting; None: await ``identify``.

        ``credential`` is what ``sealed`` returned.
        """
        policy = self._policy
        if not policy.is_configured:
            return _anonymous(address)
        known = self._identifier.recognise(credential, address, certificate)
        return None if known is None else policy.memberships.complete(known)

    async def identify(
        self,
        authorization: str | None,
        address: str | None,
        certificate: Certificate | None,
        upstream: str | None = None,
    ) -> Principal:
        """Return the principal of a client. Raises ``Unauthorized`` or ``TooManyRequests``.

        Credentials that are not ours may be for ``upstream``; None: they are wrong.
        """
        known = self.recognise(self.sealed(authorization), address, certificate)
        if known is not None:
            return known
        found = await self._identifier.identify(authorization, address, certificate, upstream)
        return self._policy.memberships.complete(found)

    def decide(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        """Decide and count; ``target`` None for actions that concern no single repository."""
        decision = self.preview(principal, action, target)
        self.count(decision)
        return decision

    def preview(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        """Return what ``decide`` would return, for lists and tokens: nothing is counted."""
        return self._policy.rules.decide(principal, action, target)

    def count(self, decision: Decision) -> None:
        """Count a decision of ``preview`` that was used for an answer."""
        self._counters.access_decisions[_outcome(decision)] += 1


def _outcome(decision: Decision) -> str:
    if decision.is_allowed:
        return "allowed"
    return "login" if decision.login_helps else "denied"
