"""What one measurement is: two contestants' numbers, round by round, and what was promised."""

from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from statistics import median
from typing import Any, Self


class Sense(Enum):
    """Which way is better."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True)
class Target:
    """What is promised of a row's value."""

    sense: Sense
    value: float

    def __str__(self) -> str:
        return f"{self.sense.value} {self.value:g}"

    def holds(self, value: float) -> bool:
        """Tell whether `value` is good enough."""
        return value >= self.value if self.sense is Sense.AT_LEAST else value <= self.value


def at_least(value: float) -> Target:
    """Return a target that more is better than."""
    return Target(Sense.AT_LEAST, value)


def at_most(value: float) -> Target:
    """Return a target that less is better than."""
    return Target(Sense.AT_MOST, value)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `ours` and `theirs` hold one number a round, in `unit`; number n of both was measured in the
    same round. Without a rival `theirs` is empty, and the target is one of ours itself. Without a
    target the row only informs.
    """

    key: str
    work: str
    unit: str
    ours: list[float]
    rival: str = ""
    theirs: list[float] = field(default_factory=list)
    target: Target | None = None
    note: str = ""
    case: str = ""

    @property
    def is_ratio(self) -> bool:
        """Tell whether the row compares with a rival."""
        return bool(self.theirs)

    @property
    def value(self) -> float:
        """The median of the rounds' ratios, ours to theirs; without a rival of our numbers."""
        if not self.is_ratio:
            return median(self.ours)
        return median(mine / other for mine, other in zip(self.ours, self.theirs, strict=True))

    @property
    def is_reached(self) -> bool | None:
        """Tell whether the target holds; None without one."""
        return self.target.holds(self.value) if self.target else None

    @property
    def progress(self) -> float | None:
        """How far the target is reached: 1 is just so, more is better; None without a target."""
        if self.target is None:
            return None
        if self.target.sense is Sense.AT_LEAST:
            return self.value / self.target.value
        return self.target.value / max(self.value, 1e-9)

    def of(self, case: str) -> Self:
        """Return the row as one of a case."""
        return replace(self, case=case)

    def json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        target = self.target and {"sense": self.target.sense.name, "value": self.target.value}
        derived = {"value": self.value, "reached": self.is_reached}
        return asdict(self) | {"target": target} | derived

    @classmethod
    def parse(cls, said: dict[str, Any]) -> Self:
        """Return the row that `json()` described."""
        kept = {name: said[name] for name in cls.__slots__ if name != "target"}
        target = said["target"] and Target(Sense[said["target"]["sense"]], said["target"]["value"])
        return cls(**kept, target=target)
