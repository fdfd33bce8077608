"""Reads ``Range`` (RFC 9110 §14.1.2). Pure."""

import re
from typing import NamedTuple

from proxy.errors import RangeInvalid

_SINGLE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


class Span(NamedTuple):
    """Bytes ``start`` up to, not including, ``stop``."""

    start: int
    stop: int


def requested(header: str | None, size: int) -> Span | None:
    """Return the one range that is asked for, clamped to ``size`` bytes.

    None means the whole: no header, another unit, several ranges, or one that makes no sense.
    Raises ``RangeInvalid`` when the range lies behind the end.
    """
    match = _SINGLE.fullmatch(header or "")
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        span = Span(max(0, size - int(last)), size)
    else:
        span = Span(int(first), min(size, int(last) + 1) if last else size)
    if span.start >= span.stop:
        raise RangeInvalid(f"{header} is outside a blob of {size} bytes", size=size)
    return span
