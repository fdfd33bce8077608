"""Quantities as people write them: durations, sizes, shares."""

import math
import re
from typing import Annotated, Final

from pydantic import BeforeValidator, ByteSize, Field, InstanceOf, TypeAdapter, ValidationError

_WRITTEN_SIZE = re.compile(r"\s*(\d+(\.\d+)?|\.\d+)\s*[a-z]*\s*", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_NO_SIZE: Final = "not a size; write bytes, or 500MiB, 50GiB, 2TiB"
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: object) -> object:
    if value == "forever":
        return math.inf
    if value in (0, "0") and value is not False:
        return 0.0
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError("not a duration; write 30s, 5m, 12h, 30d or forever")
        return float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, float):
        return value
    raise ValueError("not a duration; write 30s, 5m, 12h, 30d or forever")


def _bytes(value: object) -> object:
    if isinstance(value, str) and _WRITTEN_SIZE.fullmatch(value) is None:
        raise ValueError(_NO_SIZE)  # ByteSize would read 1,5TiB as one byte
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(_NO_SIZE)  # noqa: TRY004
    return value


_SIZE: Final = TypeAdapter(Annotated[ByteSize, BeforeValidator(_bytes)])


def _kept_for(value: object) -> object:
    match value:
        case "follow":
            return 0.0
        case "keep":
            return math.inf
        case str() if value.startswith("keep "):
            return _seconds(value.removeprefix("keep ").strip())
        case float():
            return value
        case _:
            raise ValueError("not a policy; write follow, keep or keep 30d")


class Amount:
    """An amount of disk: bytes, or a share of the file system."""

    __slots__ = ("bytes", "share")

    def __init__(self, size: int, share: float = 0.0) -> None:
        self.bytes = size
        self.share = share

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Amount) and hash(self) == hash(other)

    def __hash__(self) -> int:
        return hash((self.bytes, self.share))

    def __str__(self) -> str:
        return f"{self.share:.0%}" if self.share else ByteSize(self.bytes).human_readable()

    def of(self, total: int) -> int:
        """Return the bytes that are meant on a file system of ``total`` bytes."""
        return int(total * self.share) if self.share else self.bytes


def _amount(value: object) -> object:
    if isinstance(value, Amount):
        return value
    if isinstance(value, str) and value.endswith("%"):
        return Amount(0, _fraction(value))
    try:
        size = _SIZE.validate_python(value)
    except ValidationError:
        raise ValueError("not a size; write 500MiB, 50GiB, or 80% of the file system") from None
    return Amount(int(size))


def _fraction(value: object) -> float:
    """Read ``80%`` or ``0.8``."""
    try:
        if isinstance(value, str) and value.endswith("%"):
            return float(value.removesuffix("%")) / 100
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise ValueError("not a share; write 80% or 0.8")


def parse_size(text: str) -> int:
    """Return the bytes that ``10GiB`` or ``50MB`` (or, of a rate, ``50MB/s``) means.

    Raises ``ValueError``.
    """
    try:
        return int(_SIZE.validate_python(text.strip().removesuffix("/s")))
    except ValidationError:
        raise ValueError(f"{text!r} is not a size; write 500MiB, 10GiB or 50MB/s") from None


def show_size(size: int) -> str:
    """Return bytes as people read them: ``10.0GiB``."""
    return ByteSize(size).human_readable()


def parse_seconds(text: str) -> float:
    """Return the seconds that ``30s``, ``12h`` or ``forever`` means. Raises ``ValueError``."""
    seconds = _seconds(text)
    assert isinstance(seconds, float)
    return seconds


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
Wait = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=3600)]
KeptFor = Annotated[float, BeforeValidator(_kept_for), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_fraction), Field(gt=0, le=1)]
Disk = Annotated[InstanceOf[Amount], BeforeValidator(_amount)]
Rate = Annotated[int, BeforeValidator(lambda v: parse_size(v) if isinstance(v, str) else v)]
Bytes = Annotated[ByteSize, BeforeValidator(_bytes), Field(gt=0)]
