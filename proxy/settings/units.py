"""The types of settings: sections, and sizes, durations and shares that ``core.units`` parses."""

import math
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from proxy.core.units import Amount, parse_seconds, parse_share, parse_size


class Section(BaseModel):
    """A mapping of settings: immutable, without unknown keys. A docstring describes each field.

    Only documents need the docstrings: ``docs.generate`` reads them. Pydantic would read the source
    of each class again at each start, which takes 0.1 s.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, defer_build=True)

    old_names: ClassVar[dict[str, str]] = {}
    """Former names of settings that are still accepted, with a warning, and their new names."""


def _text(value: object) -> str:
    """Return a text; "" for anything else, which no parser accepts."""
    return value if isinstance(value, str) else ""


def _offline(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """Raise one error instead of one for each of the types."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError("expected true, false or auto") from None


def _seconds(value: object) -> float:
    if isinstance(value, float):
        return value
    is_zero = value == 0 and not isinstance(value, bool)
    return 0.0 if is_zero else parse_seconds(_text(value))


def _retention(value: object) -> float:
    match value:
        case "follow":
            return 0.0
        case "keep":
            return math.inf
        case str() if value.startswith("keep "):
            return parse_seconds(value.removeprefix("keep ").strip())
        case float():
            return value
        case _:
            raise ValueError("not a policy; write follow, keep or keep 30d")


def _bytes(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    text = _text(value)
    if not text.endswith("/s"):
        with suppress(ValueError):
            return parse_size(text)
    raise ValueError("not a size; write bytes, or 500MiB, 50GiB, 2TiB")


def _amount(value: object) -> Amount:
    match value:
        case Amount():
            return value
        case str() if value.endswith("%"):
            return Amount(0, parse_share(value))
    try:
        return Amount(_bytes(value))
    except ValueError:
        raise ValueError("not a size; write 500MiB, 50GiB, or 80% of the file system") from None


def _share(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return parse_share(_text(value))


def _moment(value: object) -> float:
    """Return a time in Unix seconds. A day begins at 00:00 UTC, as does a time without a zone."""
    with suppress(ValueError, OverflowError):
        if isinstance(value, float):
            return value
        if isinstance(value, date) and not isinstance(value, datetime):
            value = value.isoformat()
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    raise ValueError("not a time; write 2026-10-01 or 2026-10-01T12:00:00Z")


def _rate(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Offline = Annotated[bool | Literal["auto"], WrapValidator(_offline)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
Wait = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=3600)]
KeptFor = Annotated[float, BeforeValidator(_retention), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)]
Disk = Annotated[InstanceOf[Amount], BeforeValidator(_amount)]
Moment = Annotated[float, BeforeValidator(_moment)]
Rate = Annotated[int, BeforeValidator(_rate)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
