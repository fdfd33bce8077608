"""The Prometheus view of the counters, and of the gauges, whose values are read on each scrape."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.runtime.declarations import Declaration, Histogram
from proxy.runtime.metrics import CacheCounters, Metrics, UpstreamCounters
from proxy.runtime.part_counters import (
    FleetCounters,
    HookCounters,
    LimitCounters,
    NotificationCounters,
    PolicyCounters,
    ProcessGauges,
    TaskCounters,
    WorkerCounters,
)


class Gauge(NamedTuple):
    """One reading of a number that goes up and down; ``upstream`` None: of the cache itself."""

    name: str
    text: str
    value: float
    upstream: str | None = None


def registry(
    metrics: Metrics, gauges: Callable[[], list[Gauge]], version: str
) -> CollectorRegistry:
    """Return a Prometheus registry over the counters, the gauges, and this process."""
    collected = CollectorRegistry(auto_describe=False)
    collected.register(_View(metrics, gauges, version))
    ProcessCollector(registry=collected)
    PlatformCollector(registry=collected)
    return collected


class _View(Collector):
    """Renders declared fields as Prometheus metric families (text format 0.0.4) on each scrape."""

    def __init__(self, metrics: Metrics, gauges: Callable[[], list[Gauge]], version: str) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._info = GaugeMetricFamily("millpond_build_info", "Version.", labels=["version"])
        self._info.add_metric([version], 1)

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        by_upstream = {**metrics.upstreams, "": metrics.unrouted}
        for counters in by_upstream.values():
            counters.derive()
        yield from _families(UpstreamCounters, "upstream", by_upstream)
        yield from _families(CacheCounters, None, {"": metrics.cache})
        yield from _families(TaskCounters, "task", metrics.tasks)
        if metrics.workers:
            yield from _families(WorkerCounters, "worker", metrics.workers)
        yield from _families(LimitCounters, "limit", metrics.limits)
        yield from _families(PolicyCounters, "policy", metrics.policies)
        yield from _families(HookCounters, "hook", metrics.hooks)
        yield from _families(NotificationCounters, "receiver", metrics.notifications)
        yield from _families(FleetCounters, None, {"": metrics.fleet})
        yield from _families(ProcessGauges, None, {"": metrics.process})
        yield from self._readings()
        yield self._info

    def _readings(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, value, upstream in self._gauges():
            labels = [] if upstream is None else ["upstream"]
            family = families.setdefault(
                name, GaugeMetricFamily(f"millpond_{name}", text, labels=labels)
            )
            family.add_metric([] if upstream is None else [upstream], value)
        yield from families.values()


def _families(declared: Any, label: str | None, rows: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield a metric family for each declared field, with a sample for each value of ``label``."""
    for each in fields(declared):
        about: Declaration | None = each.metadata.get("metric")
        if about is None:
            continue
        labels = [name for name in (label, about.label) if name is not None]
        make: Any = about.family
        family = make(f"millpond_{about.name or each.name}", about.text, labels=labels)
        for row, counters in rows.items():
            _add(family, [] if label is None else [row], getattr(counters, each.name))
        yield family


def _add(family: Any, labels: list[str], value: object) -> None:
    match value:
        case dict():
            for name, part in value.items():
                _add(family, [*labels, str(name)], part)
        case Histogram():
            if any(value.counts):
                family.add_metric(labels, value.buckets(), value.total)
        case _:
            family.add_metric(labels, value)
