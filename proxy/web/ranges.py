"""Reads ``Range`` (RFC 9110 §14.1.2 and §14.2). Pure."""

import re
from typing import Final, NamedTuple

from proxy.errors import RangeInvalid

MAX_SPANS: Final = 256
_RANGES = re.compile(r"bytes\s*=\s*(.+)", re.IGNORECASE | re.ASCII)
_SPEC = re.compile(r"\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII)


class Span(NamedTuple):
    """Bytes ``start`` up to, not including, ``stop``."""

    start: int
    stop: int


def requested(header: str | None, size: int) -> list[Span]:
    """Return the ranges that are asked for, in order, clamped to ``size`` bytes.

    Empty means the whole: no header, another unit, one that makes no sense, or so many or so much
    overlapping that the whole is less work. Raises ``RangeInvalid`` when all lie behind the end.
    """
    match = _RANGES.fullmatch(header or "")
    if match is None:
        return []
    specs = [_SPEC.fullmatch(spec) for spec in match[1].split(",") if spec.strip()]
    if not specs or len(specs) > MAX_SPANS:
        return []
    spans = []
    for spec in specs:
        if spec is None or spec.groups() == ("", ""):
            return []
        span = _span(spec[1], spec[2], size)
        if span.start < span.stop:
            spans.append(span)
    if not spans:
        raise RangeInvalid(f"{header} is outside a blob of {size} bytes", size=size)
    if len(spans) > 1 and sum(stop - start for start, stop in spans) > size:
        return []
    return spans


def _span(first: str, last: str, size: int) -> Span:
    if not first:
        return Span(max(0, size - int(last)), size)
    return Span(int(first), min(size, int(last) + 1) if last else size)
