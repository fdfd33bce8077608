"""Sizes, durations and shares as people write them."""

import math
import re
from typing import Final

_SIZE: Final = re.compile(
    r"(\d{1,20}(?:\.\d{1,20})?|\.\d{1,20})\s*([a-z]*)", re.ASCII | re.IGNORECASE
)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PREFIXES: Final = "kmgtpe"
_BYTES: Final = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate(_PREFIXES, start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


class Amount:
    """Disk space: a number of bytes, or a share (0 to 1) of the file system if that is not 0.

    No dataclass: pydantic-settings would expect JSON in the environment variable of such a setting.
    """

    __slots__ = ("bytes", "share")

    def __init__(self, size: int, share: float = 0.0) -> None:
        self.bytes = size
        self.share = share

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Amount) and hash(self) == hash(other)

    def __hash__(self) -> int:
        return hash((self.bytes, self.share))

    def __str__(self) -> str:
        return f"{self.share:.0%}" if self.share else show_size(self.bytes)

    def of(self, total: int) -> int:
        """Return the number of bytes on a file system of ``total`` bytes."""
        return int(total * self.share) if self.share else self.bytes


def parse_size(text: str) -> int:
    """Return the bytes of ``10GiB`` or ``50MB``; ``50MB/s`` is accepted for rates.

    Raises ``ValueError``.
    """
    match = _SIZE.fullmatch(text.strip().removesuffix("/s").strip())
    unit = _BYTES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size; write 500MiB, 10GiB or 50MB/s")
    return int(match[1]) * unit if match[1].isdigit() else int(float(match[1]) * unit)


def show_size(size: int) -> str:
    """Return a number of bytes in the largest binary unit: ``10.0GiB``."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(number) < 1024:
            return f"{number:.0f}B" if unit == "B" else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:.1f}EiB"


def parse_seconds(text: str) -> float:
    """Return the seconds of ``500ms``, ``30s``, ``12h``, ``0`` or ``forever`` (infinity).

    Raises ``ValueError``.
    """
    if text == "forever":
        return math.inf
    match = _DURATION.fullmatch(text.strip())
    if match is None and text != "0":
        raise ValueError("not a duration; write 30s, 5m, 12h, 30d or forever")
    return float(match[1]) * _SECONDS[match[2]] if match else 0.0


def parse_share(text: str) -> float:
    """Return the share of ``80%`` or ``0.8``. Raises ``ValueError``."""
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError("not a share; write 80% or 0.8") from None
