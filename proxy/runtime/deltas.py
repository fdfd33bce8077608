"""Differences of counters that one process passes to another.

A process exports its counts as JSON values, which resets them; the other one adds them to its own.
They include requests, the cache's counters and pulls by image: everything that an answer to a
client changes.
"""

from collections import Counter
from dataclasses import fields
from typing import Any

from proxy.runtime.declarations import Histogram
from proxy.runtime.metrics import CacheCounters, Metrics, UpstreamCounters

Counts = dict[str, Any]
_Counters = UpstreamCounters | CacheCounters


def drain(metrics: Metrics) -> Counts:
    """Return the counts by upstream and for the cache, and reset them."""
    by_upstream = {name: _drain(counters) for name, counters in metrics.upstreams.items()}
    cache = _drain(metrics.cache)
    more = {"cache": cache, "tally": metrics.tally.to_json()}
    return {"upstreams": {name: counts for name, counts in by_upstream.items() if counts}} | {
        name: counts for name, counts in more.items() if counts
    }


def add(metrics: Metrics, counts: Counts) -> None:
    """Add the result of ``drain`` from another process."""
    for name, of_upstream in counts["upstreams"].items():
        _add(metrics.add(name), of_upstream)
    _add(metrics.cache, counts.get("cache", {}))
    metrics.tally.add_json(counts.get("tally"))


def _drain(counters: _Counters) -> Counts:
    found: Counts = {}
    for each in fields(counters):
        value = getattr(counters, each.name)
        if isinstance(value, int | float) and value:
            found[each.name] = value
            setattr(counters, each.name, 0)
        elif isinstance(value, Counter):
            if counted := {str(key): count for key, count in value.items() if count}:
                found[each.name] = counted
                for key in value:
                    value[key] = 0
        elif isinstance(value, dict) and (observed := _drain_histograms(value)):
            found[each.name] = observed
    return found


def _drain_histograms(histograms: dict[Any, Histogram]) -> Counts:
    found: Counts = {}
    for key, histogram in histograms.items():
        if any(histogram.counts):
            found[str(key)] = [histogram.counts, histogram.total]
            histogram.counts, histogram.total = [0] * len(histogram.counts), 0.0
    return found


def _add(counters: _Counters, counts: Counts) -> None:
    for name, count in counts.items():
        value = getattr(counters, name)
        if isinstance(value, Counter):
            value.update(count)
        elif isinstance(value, dict):
            for key, (buckets, total) in count.items():
                histogram = value[key]
                histogram.counts = [a + b for a, b in zip(histogram.counts, buckets, strict=True)]
                histogram.total += total
        else:
            setattr(counters, name, value + count)
