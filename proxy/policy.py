"""Pure decisions: may this record be served, must upstream be asked, does that fit.

Functions of (record, rule, now). They never await, and know neither store nor network.
RFC 5861 (stale-while-revalidate, stale-if-error), RFC 9111 §4.2.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from proxy.errors import RegistryError, UpstreamFailure

if TYPE_CHECKING:
    from proxy.records import TagRecord


class Action(Enum):
    """What to do with a tag."""

    SERVE = auto()
    SERVE_THEN_CHECK = auto()
    CHECK = auto()
    MISS = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """How old an answer of one upstream may be, in seconds; ``inf`` is for ever.

    ``offline``: the upstream is not to be asked anything.
    """

    tag_ttl: float
    stale_while_revalidate: float
    stale_if_error: float
    negative_ttl: float
    offline: bool = False


def decide(record: "TagRecord | None", rule: Rule, now: float) -> Action:
    """Return what a request for a tag should do, before anything is asked.

    A record from the future (the clock was set back) is checked, not trusted. Offline serves
    whatever is known and never checks.
    """
    if record is None:
        return Action.MISS
    if rule.offline:
        return Action.SERVE
    age = now - record.checked_at
    if 0 <= age < rule.tag_ttl:
        return Action.SERVE
    if 0 <= age < rule.tag_ttl + rule.stale_while_revalidate:
        return Action.SERVE_THEN_CHECK
    return Action.CHECK


def on_failure(record: "TagRecord | None", rule: Rule, now: float, error: RegistryError) -> Action:
    """Return SERVE when the last good copy may stand in for a failed upstream, else MISS.

    Only failures count (unreachable, rate-limited, broken): what upstream denies or declares
    absent is an answer, and is passed on.
    """
    if record is None or not isinstance(error, UpstreamFailure):
        return Action.MISS
    age = now - record.checked_at
    return Action.SERVE if age <= rule.tag_ttl + rule.stale_if_error else Action.MISS
