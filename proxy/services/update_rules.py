"""The images that are kept up to date: pinned, watched, or warmed on a schedule."""

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.content.pin_names import Named
from proxy.content.pins import Pins
from proxy.core.names import Digest, Tag, Target
from proxy.services.pull import Platforms

_UNKNOWN = Digest("")


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """What to fetch of a chosen image; ``platforms`` None: those of the previous image."""

    platforms: Platforms | None
    with_referrers: bool


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """Images and patterns, with what to fetch of them."""

    images: tuple[Named, ...]
    options: UpdateOptions

    def has(self, target: Target, tag: Tag) -> bool:
        """Return True if it names a tag."""
        return any(one.matches(target, tag, _UNKNOWN) for one in self.images)


class UpdateRules:
    """Decides what to fetch of a tag when it moves."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._rules: tuple[UpdateRule, ...] = ()

    def use(self, rules: Iterable[UpdateRule]) -> None:
        """Use these from now on, the first that names a tag; pins come last."""
        self._rules = tuple(rules)

    def of(self, target: Target, tag: Tag) -> UpdateOptions | None:
        """Return what to fetch of a tag's image, None if the tag is not chosen."""
        for rule in self._rules:
            if rule.has(target, tag):
                return rule.options
        is_pinned = bool(self._pins.pinning(target, tag, _UNKNOWN))
        return UpdateOptions(None, with_referrers=True) if is_pinned else None
