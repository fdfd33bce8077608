"""Converts the settings of an upstream into the rules for its tags."""

from proxy.core.cool_down import FirstSight
from proxy.core.selection import ANY, Selector, is_pattern, make_selector, split_tag
from proxy.core.tag_rules import TagRule, TagRules
from proxy.settings.upstreams import Upstream


def build_tag_rules(name: str, configured: Upstream) -> TagRules:
    """Return the rules of the upstream ``name``; those for some images come first."""

    def selectors(patterns: tuple[str, ...]) -> tuple[Selector, ...]:
        return tuple(_selector(name, one, library=configured.library_prefix) for one in patterns)

    rules = [
        TagRule(selectors(one.images), one.min_age, _first(one.first_seen), one.as_of)
        for one in configured.tag_rules
    ]
    whole = TagRule(
        selectors((ANY,)), configured.min_age, _first(configured.first_seen), configured.as_of
    )
    return TagRules([*rules, whole], selectors(configured.min_age_except))


def _first(setting: str | None) -> FirstSight | None:
    return None if setting is None else FirstSight(setting)


def _selector(name: str, pattern: str, *, library: bool) -> Selector:
    """Return the selector of a pattern, which may or may not begin with the upstream's name."""
    repositories, tags = split_tag(pattern.removeprefix(f"{name}/"))
    if library and "/" not in repositories and not is_pattern(repositories):
        repositories = f"library/{repositories}"
    return make_selector(f"{name}/{repositories}", tags)
