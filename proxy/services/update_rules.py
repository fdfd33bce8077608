"""The images that are kept up to date: pinned, watched, or warmed on a schedule."""

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.content.pin_names import Named
from proxy.content.pins import Pins
from proxy.core.names import Digest, Tag, Target
from proxy.services.pull import Platforms

_UNKNOWN = Digest("")


@dataclass(frozen=True, slots=True)
class Choice:
    """What to fetch of a chosen image; ``platforms`` None: those of the previous image."""

    platforms: Platforms | None
    with_referrers: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """Images and patterns, with what to fetch of them."""

    images: tuple[Named, ...]
    choice: Choice

    def has(self, target: Target, tag: Tag) -> bool:
        """Return True if it names a tag."""
        return any(one.matches(target, tag, _UNKNOWN) for one in self.images)


class Choices:
    """Decides what to fetch of a tag when it moves."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._chosen: tuple[Chosen, ...] = ()

    def use(self, chosen: Iterable[Chosen]) -> None:
        """Use these from now on, the first that names a tag; pins come last."""
        self._chosen = tuple(chosen)

    def of(self, target: Target, tag: Tag) -> Choice | None:
        """Return what to fetch of a tag's image, None if the tag is not chosen."""
        for chosen in self._chosen:
            if chosen.has(target, tag):
                return chosen.choice
        is_pinned = bool(self._pins.pinning(target, tag, _UNKNOWN))
        return Choice(None, with_referrers=True) if is_pinned else None
