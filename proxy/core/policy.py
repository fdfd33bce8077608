"""Pure decisions about tags: serve the copy, ask upstream, or serve the last copy after a failure.

They depend on the time of the last check, the rule and the current time alone. RFC 5861
(stale-while-revalidate, stale-if-error), RFC 9111 §4.2 and §5.2.1.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.errors import NotFound, RegistryError, UpstreamFailure

if TYPE_CHECKING:
    from proxy.core.names import Tag

_SIGNATURE = re.compile(r"sha(256|512)-[0-9a-f]{64}(\.(sig|att|sbom))?")
_EXTEND_BELOW: Final = 0.5
_MAX_FACTOR: Final = 100.0


class Action(Enum):
    """The action for a request of a tag."""

    SERVE = auto()
    SERVE_THEN_CHECK = auto()
    CHECK = auto()
    MISS = auto()


class CacheDirective(Enum):
    """The directive in a request's ``Cache-Control``."""

    ANY = auto()
    REVALIDATE = auto()
    ONLY_IF_CACHED = auto()


class MaxAge(NamedTuple):
    """Seconds for which an answer of the registry to another replica counts.

    ``record``: where a tag points. ``absence``: that there is no such tag.
    """

    record: float
    absence: float


NOW: Final = MaxAge(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Rule:
    """The freshness of one upstream; durations in seconds, ``inf`` means without limit.

    ``keep_deleted``: time after its last confirmation that a tag survives its deletion upstream.
    ``rate_limit_reserve``: share of the rate limit that is reserved for uncached content.
    ``offline``: upstream is never asked.
    """

    tag_ttl: float
    stale_while_revalidate: float
    stale_if_error: float
    negative_ttl: float
    signature_ttl: float = 0.0
    keep_deleted: float = 0.0
    rate_limit_reserve: float = 0.0
    offline: bool = False

    def for_tag(self, tag: "Tag", share: float | None) -> "Rule":
        """Return the rule for one tag; ``share`` of the rate limit is left, None without limit.

        Tags of signatures, attestations and referrers change in place, so they expire sooner. As
        the rate limit is used up, cached tags stay fresh for longer.
        """
        if is_attachment(tag):
            return replace(
                self, tag_ttl=min(self.tag_ttl, self.signature_ttl), stale_while_revalidate=0.0
            )
        if share is None or share >= _EXTEND_BELOW:
            return self
        factor = min(_EXTEND_BELOW / share, _MAX_FACTOR) if share > 0 else _MAX_FACTOR
        return replace(self, tag_ttl=self.tag_ttl * factor)


def is_attachment(tag: "Tag") -> bool:
    """Return True for the tag of a signature, an attestation or referrers."""
    return _SIGNATURE.fullmatch(tag) is not None


def cache_directive(cache_control: str | None) -> CacheDirective:
    """Return the directive in a request's ``Cache-Control`` (RFC 9111 §5.2.1)."""
    directives = {part.strip().lower() for part in (cache_control or "").split(",")}
    if "only-if-cached" in directives:
        return CacheDirective.ONLY_IF_CACHED
    if directives & {"no-cache", "max-age=0"}:
        return CacheDirective.REVALIDATE
    return CacheDirective.ANY


def decide(
    checked_at: float | None, rule: Rule, now: float, directive: CacheDirective = CacheDirective.ANY
) -> Action:
    """Return the action for a request of a tag, before upstream is asked.

    ``checked_at`` is when upstream last confirmed the tag, Unix seconds, None for an unknown tag.
    A known tag is served without a check when offline or with ``only-if-cached``. One that was
    confirmed in the future (the clock was set back) is checked.
    """
    if checked_at is None:
        return Action.MISS
    if rule.offline or directive is CacheDirective.ONLY_IF_CACHED:
        return Action.SERVE
    age = now - checked_at
    if directive is CacheDirective.REVALIDATE or age < 0:
        return Action.CHECK
    if age < rule.tag_ttl:
        return Action.SERVE
    if age < rule.tag_ttl + rule.stale_while_revalidate:
        return Action.SERVE_THEN_CHECK
    return Action.CHECK


def on_failure(checked_at: float, rule: Rule, now: float, error: RegistryError) -> Action:
    """Return SERVE if the last good copy may replace upstream's answer, else MISS.

    There are three cases: a failure (unreachable, rate-limited, broken) within ``stale_if_error``
    is replaced; so is the absence of a tag within ``keep_deleted``; a denial never is.
    """
    age = now - checked_at
    if isinstance(error, UpstreamFailure) and age <= rule.tag_ttl + rule.stale_if_error:
        return Action.SERVE
    if isinstance(error, NotFound) and rule.keep_deleted > 0 and age <= rule.keep_deleted:
        return Action.SERVE
    return Action.MISS


def is_scarce(rule: Rule, share: float | None) -> bool:
    """Return True if the rest of a rate limit is reserved for uncached content."""
    return share is not None and share <= rule.rate_limit_reserve


def seconds_fresh(checked_at: float, rule: Rule, now: float) -> float:
    """Return the seconds for which a tag is still fresh; negative if it is stale."""
    return checked_at + rule.tag_ttl - now
