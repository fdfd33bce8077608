"""What pins are named, and which images that means."""

import re
from dataclasses import dataclass

from proxy.core.names import Digest, Image, Tag, Target
from proxy.core.selection import Selector


@dataclass(frozen=True, slots=True)
class Pin:
    """One pin and what it keeps: ``bytes`` on disk; ``refused`` says why it keeps less."""

    name: str
    is_configured: bool
    images: int
    bytes: int
    refused: str | None


@dataclass(frozen=True, slots=True)
class Named:
    """A pin as it is named, and what it means.

    In a configured pattern ``*`` has always stood for slashes as well; ``anywhere`` is that
    reading. A pin that keeps more than it must does no harm; one that no longer keeps an image
    does.
    """

    name: str
    meant: Image | Selector
    is_configured: bool = False
    anywhere: re.Pattern[str] | None = None

    def matches(self, target: Target, tag: Tag, digest: Digest) -> bool:
        """Return True if it names an image: by its tag, by its digest, or by a pattern."""
        if isinstance(self.meant, Image):
            by_tag, by_digest = Image(target, tag, None), Image(target, None, digest)
            return self.meant in (by_tag, by_digest, Image(None, None, digest))
        if self.anywhere is not None and self.anywhere.match(f"{target}:{tag}"):
            return True
        return self.meant.matches(target, tag, digest)


def is_covered(pin: Image | Selector, by: Image | Selector) -> bool:
    """Return True if a pattern means a pinned image."""
    if not isinstance(by, Selector) or isinstance(pin, Selector) or pin.target is None:
        return False
    if pin.tag is not None and by.digest is None:
        return by.matches(pin.target, pin.tag, Digest(""))
    return pin.digest is not None and by.is_of_repositories and by.covers(pin.target)
