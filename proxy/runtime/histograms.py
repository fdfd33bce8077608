"""Histograms that are cheap to fill: plain numbers, read by Prometheus only when it scrapes."""

from bisect import bisect_left
from itertools import accumulate
from typing import Final

BOUNDS: Final = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Upper bounds of the buckets in seconds; one more bucket takes what is above."""

_LABELS: Final = (*(str(bound) for bound in BOUNDS), "+Inf")


class Histogram:
    """Durations in seconds, counted by size."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    @property
    def is_empty(self) -> bool:
        """Nothing has been counted."""
        return not any(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Return upper bounds and how many durations are not above each, as Prometheus wants."""
        return list(zip(_LABELS, accumulate(self.counts), strict=True))


class Timing:
    """How long requests took until the first byte of their answer, and in all."""

    __slots__ = ("first_byte", "whole")

    def __init__(self) -> None:
        self.first_byte = Histogram()
        self.whole = Histogram()

    def observe(self, first_byte: float, whole: float) -> None:
        """Count one request; both in seconds from its start."""
        self.first_byte.observe(first_byte)
        self.whole.observe(whole)
