"""Reads ``Range`` (RFC 9110 §14.1.2 and §14.2) in one pass over bounded input. Pure."""

from typing import Final, NamedTuple

from proxy.core.errors import RangeInvalid

MAX_RANGES: Final = 256
MAX_CHARACTERS: Final = 8192
"""Of the header. A longer one is treated like no header."""

_MAX_DIGITS: Final = 18
_SPACE: Final = " \t"


class ByteRange(NamedTuple):
    """Bytes ``start`` up to, not including, ``stop``."""

    start: int
    stop: int


def requested(header: str | None, size: int) -> list[ByteRange]:
    """Return the ranges that are asked for, in order, clamped to ``size`` bytes.

    Empty means the whole: no header, another unit, a malformed header, or ranges so many or so
    overlapping that the whole is less work. Raises ``RangeInvalid`` if all begin after the end.
    """
    specs = _specs(header or "")
    if not 0 < len(specs) <= MAX_RANGES:
        return []
    byte_ranges = []
    for spec in specs:
        first, dash, last = spec.partition("-")
        first, last = first.rstrip(_SPACE), last.lstrip(_SPACE)
        if not dash or not (first or last) or not (_is_offset(first) and _is_offset(last)):
            return []
        byte_range = _byte_range(first, last, size)
        if byte_range.start < byte_range.stop:
            byte_ranges.append(byte_range)
    if not byte_ranges:
        raise RangeInvalid(f"{header} is outside a blob of {size} bytes", size=size)
    if len(byte_ranges) > 1 and sum(stop - start for start, stop in byte_ranges) > size:
        return []
    return byte_ranges


def _specs(header: str) -> list[str]:
    """Return the ranges as they are written, without the space around them and empty ones."""
    if len(header) > MAX_CHARACTERS:
        return []
    unit, _, ranges = header.partition("=")
    if unit.rstrip(_SPACE).lower() != "bytes":
        return []
    return [spec for part in ranges.split(",") if (spec := part.strip(_SPACE))]


def _is_offset(text: str) -> bool:
    return not text or (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS)


def _byte_range(first: str, last: str, size: int) -> ByteRange:
    if not first:
        return ByteRange(max(0, size - int(last)), size)
    return ByteRange(int(first), min(size, int(last) + 1) if last else size)
