"""The image of an event, and whether a pattern selects it."""

from collections.abc import Mapping
from typing import Final

from proxy.core.names import Digest, Image, Repo, Tag, Target
from proxy.core.selection import Selector, split_tag
from proxy.runtime.events import EventKind, Fact

_NAMED: Final = (EventKind.PULL, EventKind.TAG_MOVED, EventKind.DENIED)
"""Events whose subject is an image."""

_CONTENT: Final = (EventKind.CACHED, EventKind.CORRUPT)
"""Events whose subject is a digest, and whose data names the repository, if one is known."""


def image_of(kind: str, subject: str, data: Mapping[str, Fact]) -> Image | None:
    """Return the image or repository of an event; None if it has none."""
    if kind in _NAMED:
        named, at, digest = subject.partition("@")
        name, tag = (named, None) if at else split_tag(named)
        upstream, _, repo = name.partition("/")
        target = Target(upstream, Repo(repo))
        return Image(target, None if tag is None else Tag(tag), Digest(digest) if at else None)
    if kind in _CONTENT and data.get("upstream") is not None:
        target = Target(str(data["upstream"]), Repo(str(data["repository"])))
        return Image(target, None, Digest(subject))
    return None


def selects(selector: Selector, image: Image) -> bool:
    """Return True if an event about an image, or about a repository, is selected."""
    if selector.digest is not None and selector.digest != image.digest:
        return False
    if selector.tags is not None and (image.tag is None or not selector.tags.match(image.tag)):
        return False
    return image.target is not None and selector.covers(image.target)
