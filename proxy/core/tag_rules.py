"""Rules for tags of an upstream: cool-down, and tags of the past."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from proxy.core.cool_down import CoolDown, FirstSight
from proxy.core.names import Tag, Target
from proxy.core.policy import is_attachment
from proxy.core.selection import Selector


@dataclass(frozen=True, slots=True)
class TagRule:
    """Values for the tags that ``selectors`` select; None leaves a value to the next rule."""

    selectors: tuple[Selector, ...]
    min_age: float | None = None
    first_sight: FirstSight | None = None
    as_of: float | None = None

    def covers(self, target: Target, tag: Tag | None) -> bool:
        """Return True if the rule is for a tag; None stands for the digests of a repository."""
        return any(_selects(one, target, tag) for one in self.selectors)


class TagRules:
    """The rules of one upstream. The first that has a value decides about it."""

    def __init__(self, rules: Iterable[TagRule] = (), exceptions: Iterable[Selector] = ()) -> None:
        """``exceptions`` are never held."""
        self._rules: Final = tuple(rules)
        self._exceptions: Final = tuple(exceptions)
        self.has_cool_downs: Final = any(rule.min_age for rule in self._rules)
        """Some tags may be held."""
        self.has_past_times: Final = any(rule.as_of is not None for rule in self._rules)
        """Some tags have ``as_of``."""

    def cool_down(self, target: Target, tag: Tag | None) -> CoolDown | None:
        """Return the rule for a tag, or for digests; None if they are served at once.

        Tags of signatures follow the digest in their name, so they are never held.
        """
        if not self.has_cool_downs or (tag is not None and is_attachment(tag)):
            return None
        if any(_selects(one, target, tag) for one in self._exceptions):
            return None
        covering = [rule for rule in self._rules if rule.covers(target, tag)]
        min_age = next((one.min_age for one in covering if one.min_age is not None), 0.0)
        first = next((one.first_sight for one in covering if one.first_sight is not None), None)
        return CoolDown(min_age, first or FirstSight.CREATED) if min_age > 0 else None

    def as_of(self, target: Target, tag: Tag) -> float | None:
        """Return the moment that a tag shows, Unix seconds; None for the present."""
        if not self.has_past_times or is_attachment(tag):
            return None
        covering = (rule for rule in self._rules if rule.covers(target, tag))
        return next((rule.as_of for rule in covering if rule.as_of is not None), None)


def _selects(selector: Selector, target: Target, tag: Tag | None) -> bool:
    if selector.tags is not None and (tag is None or selector.tags.match(tag) is None):
        return False
    return selector.covers(target)
