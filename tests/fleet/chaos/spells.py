"""When what was broken."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

SETTLE_SECONDS: Final = 6.0
"""After a fault has ended, so long its effects may be seen: Redis is tried again every second, and
a slow machine needs its time to compare all tags."""


@dataclass
class Spell:
    """One fault at one place; `place` is empty for what all share."""

    kind: str
    place: str
    began: float
    ended: float = float("inf")


class Spells:
    """All faults of a run."""

    def __init__(self) -> None:
        self.all: list[Spell] = []

    @contextmanager
    def during(self, kind: str, place: str = "") -> Iterator[None]:
        """Note a fault for the time of the context."""
        spell = Spell(kind, place, time.time())
        self.all.append(spell)
        try:
            yield
        finally:
            spell.ended = time.time()

    def between(
        self, began: float, ended: float, kinds: frozenset[str], settle: float = SETTLE_SECONDS
    ) -> list[Spell]:
        """Return the faults of these kinds whose effects fall into this time."""
        return [
            spell
            for spell in self.all
            if spell.kind in kinds and spell.began <= ended and spell.ended + settle >= began
        ]
