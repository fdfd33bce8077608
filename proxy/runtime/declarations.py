"""Declaration of counters, as fields of dataclasses with their HELP texts."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import field
from itertools import accumulate
from typing import Any, Final, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Upper bounds of a histogram's buckets in seconds; one more bucket has no bound."""

_BUCKET_LABELS: Final = (*(str(bound) for bound in BUCKETS), "+Inf")


class Histogram:
    """Durations in seconds, counted by bucket."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(_BUCKET_LABELS)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the upper bounds with cumulative counts, as Prometheus expects them."""
        return list(zip(_BUCKET_LABELS, accumulate(self.counts), strict=True))


class Declaration(NamedTuple):
    """The Prometheus metadata of a field; ``name`` None stands for the field's own name."""

    text: str
    family: type[Metric]
    name: str | None
    label: str | None = None
    in_stats: bool = False


def _metric(about: Declaration, **default: Any) -> Any:
    return field(**default, metadata={"metric": about})


def counter(text: str, *, name: str | None = None, in_stats: bool = True) -> Any:
    """Declare an integer that only grows, exposed as ``millpond_<name>_total``."""
    return _metric(Declaration(text, CounterMetricFamily, name, in_stats=in_stats), default=0)


def gauge(text: str, default: float, *, name: str) -> Any:
    """Declare a number that goes up and down, exposed as ``millpond_<name>``."""
    return _metric(Declaration(text, GaugeMetricFamily, name), default=default)


def counter_by(label: str, text: str, values: Iterable[str] = (), *, name: str) -> Any:
    """Declare a ``Counter`` by the values of ``label``; ``values`` are exposed from the start."""
    about = Declaration(text, CounterMetricFamily, name, label)
    return _metric(about, default_factory=lambda: Counter(dict.fromkeys(values, 0)))


def histogram_by(label: str, text: str, values: Iterable[str], *, name: str) -> Any:
    """Declare a dict of histograms by the values of ``label``; empty ones are not exposed."""
    about = Declaration(text, HistogramMetricFamily, name, label)
    return _metric(about, default_factory=lambda: {value: Histogram() for value in values})
