"""Selection of images by name or pattern.

In a pattern ``*`` matches anything within one component of a name, a component ``**`` any number of
components, ``?`` one character and ``[abc]`` one of these. The tag, after the colon, is matched
separately. Names begin with the upstream; ``routing`` completes shorter ones.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Final, Self

from proxy.core.errors import NameInvalid
from proxy.core.names import Digest, Image, Tag, Target

ANY: Final = "**"
MAX_LENGTH: Final = 1024
_WILDCARDS: Final = frozenset("*?[")

Component = re.Pattern[str] | None
"""Matches one component of a name; None matches any number of them."""


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A pattern over names that ``/`` divides into components."""

    text: str
    components: tuple[Component, ...] = field(compare=False)

    @classmethod
    def of(cls, text: str) -> Self:
        """Return a pattern: ``*`` within one component, ``**`` across components."""
        parts = text.split("/")
        return cls(text, tuple(None if part == ANY else _compiled(part) for part in parts))

    def matches(self, name: str) -> bool:
        """Return True if the pattern matches the whole name."""
        return _covers(self.components, name.split("/"))


@dataclass(frozen=True, slots=True)
class Selector:
    """Selects images of repositories: all of them, those with certain tags, or one digest.

    ``text`` is its stored and printed form. ``tags`` and ``digest`` None mean all.
    """

    text: str
    repositories: NamePattern = field(compare=False)
    tags: re.Pattern[str] | None = field(default=None, compare=False)
    digest: Digest | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def is_of_repositories(self) -> bool:
        """Whole repositories are selected, with all their content."""
        return self.tags is None and self.digest is None

    def covers(self, target: Target) -> bool:
        """Return True if images of a repository may be selected."""
        return self.repositories.matches(str(target))

    def matches(self, target: Target, tag: Tag, digest: Digest) -> bool:
        """Return True if an image with this tag and digest is selected."""
        if self.digest is not None and self.digest != digest:
            return False
        if self.tags is not None and self.tags.match(tag) is None:
            return False
        return self.covers(target)


def is_pattern(text: str) -> bool:
    """Return True if a name has wildcards."""
    return not _WILDCARDS.isdisjoint(text)


def split_tag(text: str) -> tuple[str, str | None]:
    """Return a name without its tag, and the tag, None without one."""
    path, slash, last = text.rpartition("/")
    last, colon, tag = last.partition(":")
    return path + slash + last, tag if colon else None


def make_selector(
    repositories: str, tags: str | None = None, digest: Digest | None = None
) -> Selector:
    """Return a selector of patterns for whole repository names and for tags, or of a digest.

    Raises ``NameInvalid`` for a name that is empty or too long.
    """
    text = repositories if tags is None else f"{repositories}:{tags}"
    if digest is not None:
        text = str(digest) if repositories == ANY else f"{repositories}@{digest}"
    if not all(repositories.split("/")) or tags == "" or len(text) > MAX_LENGTH:
        raise NameInvalid(
            f"{text[:80]!r} is no name; write nginx:1.27, ghcr.io/org/app or ghcr.io/org/*"
        )
    pattern = NamePattern.of(repositories)
    return Selector(text, pattern, None if tags is None else _compiled(tags), digest)


def selector_of(image: Image) -> Selector:
    """Return the selector of one image; of a digest without a repository, in all of them."""
    return make_selector(
        ANY if image.target is None else str(image.target), image.tag, image.digest
    )


def allowing(pattern: str, selector: Callable[[str], Selector]) -> Selector:
    """Return the selector of a pattern that allows something; ``selector`` parses all others.

    Its first component stands for the registry: ``*/acme/**`` must not select
    ``ghcr.io/mallory/acme/app``. To select too much is safe where a pattern denies. Raises
    ``RegistryError``.
    """
    if "/" in pattern and is_pattern(pattern[:1]):
        return make_selector(*split_tag(pattern))
    return selector(pattern)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def _covers(patterns: tuple[Component, ...], components: list[str]) -> bool:
    """Return True if the patterns match all components, in order.

    ``ends`` are the positions up to which the patterns so far may match. So the time grows with
    the product of both lengths; backtracking would take exponential time.
    """
    ends = {0}
    for pattern in patterns:
        if not ends:
            return False
        if pattern is None:
            ends = set(range(min(ends), len(components) + 1))
        else:
            ends = {
                end + 1 for end in ends if end < len(components) and pattern.match(components[end])
            }
    return len(components) in ends
