"""Reads response headers that an upstream writes, each bounded and in linear time. Pure.

Sources: RFC 8288 (``Link``), RFC 9110 §10.2.3 (``Retry-After``) and §14.4 (``Content-Range``).
"""

import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from itertools import islice
from time import time
from typing import Final, NamedTuple

MAX_RETRY_AFTER: Final = 24 * 3600.0
MAX_DATE: Final = 64
MAX_LINK_LINES: Final = 8
MAX_LINK: Final = 16 * 1024
"""Characters of all ``Link`` lines together; a longer line, and what follows it, is not read."""

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_LINK = re.compile(r"[\s,]*+<([^>]*+)>((?:[^,\"]++|\"[^\"]*+\"?+)*+)")
_RELATION = re.compile(r";\s*+rel\s*+=\s*+(?:\"([^\"]*+)\"|([^\s\";,]++))", re.IGNORECASE)


class ContentRange(NamedTuple):
    """Bytes ``start`` up to, not including, ``stop``; ``size`` of the whole is None for ``*``."""

    start: int
    stop: int
    size: int | None


def content_range(value: str) -> ContentRange | None:
    """Return what ``Content-Range`` says; None for what is not one range of bytes."""
    match = _RANGE.fullmatch(value)
    if match is None:
        return None
    size = None if match[3] == "*" else int(match[3])
    return ContentRange(int(match[1]), int(match[2]) + 1, size)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return ``Retry-After`` in seconds, at most a day; None when it is missing or unreadable."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER)
    if len(value) > MAX_DATE:
        return None
    try:
        wait = parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(wait, 0.0), MAX_RETRY_AFTER)


def next_link(values: Iterable[str]) -> str | None:
    """Return the address in the first link of relation ``next``; None when there is none."""
    left = MAX_LINK
    for value in islice(values, MAX_LINK_LINES):
        left -= len(value)
        if left < 0:
            break
        position = 0
        while match := _LINK.match(value, position):
            relation = _RELATION.search(match[2])
            if relation and "next" in (relation[1] or relation[2] or "").lower().split():
                return match[1]
            position = match.end()
    return None
