"""Which digest of a tag's history is served: the one of a moment, or the newest that is old enough.

Pure functions of the history, the rule and the current time. All times are Unix seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from proxy.core.records import TagHistoryEntry

if TYPE_CHECKING:
    from proxy.core.names import Digest


class FirstSight(Enum):
    """How the first digest that a tag is seen with is judged."""

    CREATED = "created"
    """By the time at which the image says that it was created."""
    ALLOW = "allow"
    """It is served at once."""
    DENY = "deny"
    """It is held for ``min_age`` as every other digest."""


@dataclass(frozen=True, slots=True)
class CoolDown:
    """The seconds for which a digest has to be on a tag before the tag follows it."""

    min_age: float
    first_sight: FirstSight = FirstSight.CREATED


class Choice(NamedTuple):
    """The digest that a tag is served with, None if all are held, and when the newest will be."""

    digest: "Digest | None"
    held_until: float | None


def choose(
    history: Sequence[TagHistoryEntry], now: float, rule: CoolDown, trusted_for: float
) -> Choice:
    """Return the newest digest that has been on a tag for ``min_age``.

    ``history`` is not empty, the latest last. A sight counts for ``trusted_for`` seconds: as long
    as it is served without another check. So a digest that was served once is still old enough
    after the tag moves. An entry without a known first sight (0) is never old enough here.
    """
    newest = history[-1]
    until = newest.first_seen + rule.min_age
    end = now
    for entry in reversed(history):
        seen_until = min(end, entry.last_seen + trusted_for)
        if entry.first_seen > 0 and seen_until - entry.first_seen >= rule.min_age:
            return Choice(entry.digest, None if entry.digest == newest.digest else until)
        end = entry.first_seen
    return Choice(None, until)


def at(history: Sequence[TagHistoryEntry], moment: float) -> "Digest | None":
    """Return the digest that a tag was last seen with at or before a moment; None for none."""
    seen = [entry.digest for entry in history if 0 < entry.first_seen <= moment]
    return seen[-1] if seen else None


def show_time(moment: float) -> str:
    """Return a time in UTC, as ``2026-10-01T00:00:00Z``."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "the end of time"
