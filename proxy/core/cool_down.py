"""Selects the digest to serve from a tag's history: that of a moment, or the newest old enough.

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
    """The treatment of the first digest of a tag."""

    CREATED = "created"
    """By the creation time in the image."""
    ALLOW = "allow"
    """It is served at once."""
    DENY = "deny"
    """It is held for ``min_age`` like every other digest."""


@dataclass(frozen=True, slots=True)
class CoolDown:
    """The seconds for which a digest has to be on a tag before the tag follows it."""

    min_age: float
    first_sight: FirstSight = FirstSight.CREATED


class Choice(NamedTuple):
    """The digest to serve for a tag, None if all are held, and the end of the newest one's hold."""

    digest: "Digest | None"
    held_until: float | None


def choose(
    history: Sequence[TagHistoryEntry], now: float, rule: CoolDown, trusted_for: float
) -> Choice:
    """Return the newest digest that has been on a tag for ``min_age``.

    ``history`` is not empty, the latest last. A sighting is valid for ``trusted_for`` seconds, the
    time for which it is served without another check. So a digest that was served once is still old
    enough after the tag moves. An entry without a known first sighting (0) is never old enough.
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
    """Return the last known digest of a tag at a moment; None without one."""
    seen = [entry.digest for entry in history if 0 < entry.first_seen <= moment]
    return seen[-1] if seen else None


def show_time(moment: float) -> str:
    """Return a time in UTC, as ``2026-10-01T00:00:00Z``."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "the end of time"
