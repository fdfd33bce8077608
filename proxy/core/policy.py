"""Pure decisions: may this record be served, must upstream be asked, may the last copy stand in.

Functions of (when upstream was last asked, rule, now). They never await, and know neither store nor
network.
RFC 5861 (stale-while-revalidate, stale-if-error), RFC 9111 §4.2 and §5.2.1.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from proxy.core.errors import NotFound, RegistryError, UpstreamFailure

if TYPE_CHECKING:
    from proxy.core.names import Tag

_SIGNATURE = re.compile(r"sha(256|512)-[0-9a-f]{64}(\.(sig|att|sbom))?")
_WIDEN_BELOW: Final = 0.5
_WIDEST: Final = 100.0


class Action(Enum):
    """What to do with a tag."""

    SERVE = auto()
    SERVE_THEN_CHECK = auto()
    CHECK = auto()
    MISS = auto()


class CacheDirective(Enum):
    """What a request's ``Cache-Control`` asks for."""

    ANY = auto()
    REVALIDATE = auto()
    ONLY_IF_CACHED = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """How old an answer of one upstream may be, in seconds; ``inf`` is for ever.

    ``keep_deleted``: how long after its last confirmation a tag outlives its deletion upstream.
    ``rate_limit_reserve``: the share of a rate limit that is kept for what is not held.
    ``offline``: the upstream is not to be asked anything.
    """

    tag_ttl: float
    stale_while_revalidate: float
    stale_if_error: float
    negative_ttl: float
    signature_ttl: float = 0.0
    keep_deleted: float = 0.0
    rate_limit_reserve: float = 0.0
    offline: bool = False

    def of(self, tag: "Tag", share: float | None) -> "Rule":
        """Return the rule for one tag while ``share`` of the rate limit is left (None: no limit).

        Tags of signatures, attestations and referrers change in place, so they are checked often.
        As a limit is used up, what is held counts as fresh for longer.
        """
        if _SIGNATURE.fullmatch(tag):
            return replace(
                self, tag_ttl=min(self.tag_ttl, self.signature_ttl), stale_while_revalidate=0.0
            )
        if share is None or share >= _WIDEN_BELOW:
            return self
        factor = min(_WIDEN_BELOW / share, _WIDEST) if share > 0 else _WIDEST
        return replace(self, tag_ttl=self.tag_ttl * factor)


def wish(cache_control: str | None) -> CacheDirective:
    """Return what a request's ``Cache-Control`` asks for (RFC 9111 §5.2.1)."""
    directives = {part.strip().lower() for part in (cache_control or "").split(",")}
    if "only-if-cached" in directives:
        return CacheDirective.ONLY_IF_CACHED
    if directives & {"no-cache", "max-age=0"}:
        return CacheDirective.REVALIDATE
    return CacheDirective.ANY


def decide(
    checked_at: float | None, rule: Rule, now: float, asked: CacheDirective = CacheDirective.ANY
) -> Action:
    """Return what a request for a tag should do, before anything is asked.

    ``checked_at`` is when upstream last confirmed it, Unix seconds, None when it is unknown. What
    was confirmed in the future (the clock was set back) is checked, not trusted. Offline, and when
    only what is held is wanted, whatever is known is served and nothing is checked.
    """
    if checked_at is None:
        return Action.MISS
    if rule.offline or asked is CacheDirective.ONLY_IF_CACHED:
        return Action.SERVE
    age = now - checked_at
    if asked is CacheDirective.REVALIDATE or age < 0:
        return Action.CHECK
    if age < rule.tag_ttl:
        return Action.SERVE
    if age < rule.tag_ttl + rule.stale_while_revalidate:
        return Action.SERVE_THEN_CHECK
    return Action.CHECK


def on_failure(checked_at: float, rule: Rule, now: float, error: RegistryError) -> Action:
    """Return SERVE when the last good copy may stand in for upstream's answer, else MISS.

    For failures (unreachable, rate-limited, broken) within ``stale_if_error``; for a tag that
    upstream declares absent within ``keep_deleted``. What upstream denies is passed on.
    """
    age = now - checked_at
    if isinstance(error, UpstreamFailure) and age <= rule.tag_ttl + rule.stale_if_error:
        return Action.SERVE
    if isinstance(error, NotFound) and rule.keep_deleted > 0 and age <= rule.keep_deleted:
        return Action.SERVE
    return Action.MISS


def is_scarce(rule: Rule, share: float | None) -> bool:
    """Tell whether what is left of a rate limit is reserved for what is not held."""
    return share is not None and share <= rule.rate_limit_reserve


def seconds_fresh(checked_at: float, rule: Rule, now: float) -> float:
    """Return for how much longer a tag is answered without asking; negative when it is stale."""
    return checked_at + rule.tag_ttl - now
