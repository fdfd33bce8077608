"""The state of a tag in this cache, and how long it stays fresh. Sends no request."""

import math
from dataclasses import dataclass

from proxy.core import policy
from proxy.core.errors import HeldBack, RegistryError
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import TagRecord
from proxy.repository.origins import Origin
from proxy.repository.tags import Tags
from proxy.services.explain.facts import Freshness


@dataclass(frozen=True, slots=True)
class TagState:
    """The digest that is served for a tag, None with a ``problem`` or if the tag is not known.

    ``is_open``: the creation time of an image decides whether another one is served.
    """

    record: TagRecord | None
    digest: Digest | None
    held_back_until: float | None = None
    as_of: float | None = None
    problem: str | None = None
    is_open: bool = False


async def tag_state_of(tags: Tags, target: Target, tag: Tag) -> TagState:
    """Return the state of a tag, as far as it is known without a request."""
    cool_downs = tags.cool_downs
    record = await cool_downs.content.tags.get(target, tag)
    moment = cool_downs.sources[target.upstream].tag_rules.as_of(target, tag)
    if moment is not None:
        try:
            shown = await tags.past.at(target, tag, moment)
        except RegistryError as error:
            return TagState(record, None, as_of=moment, problem=error.message)
        return TagState(record, shown, as_of=moment)
    if record is None:
        return TagState(None, None)
    try:
        served = await cool_downs.foreseen(target, tag, record)
    except HeldBack as error:
        return TagState(record, None, error.until, problem=error.message)
    if served is None:
        return TagState(record, record.descriptor.digest, is_open=True)
    return TagState(record, served.digest, served.held_until)


def freshness_of(origin: Origin, target: Target, tag: Tag, tag_state: TagState) -> Freshness:
    """Return how old the answer for a tag may be, by the settings and the rate limit."""
    rule, record = origin.rule_for(tag), tag_state.record
    checked = record.checked_at if record is not None and record.checked_at > 0 else None
    cool_down = origin.tag_rules.cool_down(target, tag)
    fresh = math.inf if checked is None or rule.offline else checked + rule.tag_ttl
    return Freshness(
        checked_at=checked,
        fresh_until=_finite(fresh),
        served_until=_finite(fresh + rule.stale_while_revalidate),
        kept_until=_finite(fresh + rule.stale_if_error),
        changed_by=_change(origin, tag),
        newest=None if record is None else record.descriptor.digest,
        min_age=None if cool_down is None else cool_down.min_age,
        held_back_until=tag_state.held_back_until,
        as_of=tag_state.as_of,
    )


def _change(origin: Origin, tag: Tag) -> str | None:
    """Return why the time for which a tag is fresh differs from ``tag_ttl``."""
    if origin.rule.offline:
        return "the registry is offline, so the age does not matter"
    if policy.is_attachment(tag):
        return "it is the tag of a signature, so signature_ttl applies"
    if origin.rule_for(tag) != origin.rule:
        return "the rate limit is nearly used up, so tags stay fresh for longer"
    return None


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
