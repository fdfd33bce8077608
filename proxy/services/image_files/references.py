"""Distinguishes names of images from other text."""

import re
from typing import Final

_COMPONENT: Final = r"[A-Za-z0-9]+(?:(?:[._]|__|-+)[A-Za-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"{_COMPONENT}(?::\d+(?=/))?(?:/{_COMPONENT})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@[a-z0-9]+:[0-9a-f]{32,128})?"
)
_MAX_LENGTH: Final = 512


def is_reference(text: str) -> bool:
    """Return True if text can be the name of an image, as clients write it."""
    return len(text) <= _MAX_LENGTH and _REFERENCE.fullmatch(text) is not None


def is_surely_reference(text: str) -> bool:
    """Return True if text is not a single word, and therefore very likely an image's name."""
    return is_reference(text) and (":" in text or "/" in text)
