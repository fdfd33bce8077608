"""What is counted: plain integers bumped on the hot path, and a Prometheus view over them.

An integer costs a twentieth of a labelled Prometheus counter, so Prometheus reads ours only when
it scrapes. Every request for content counts once, under exactly one outcome.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from proxy.runtime.histograms import Histogram, Timing
from proxy.runtime.readiness import Readiness


class Outcome(Enum):
    """How a request was answered."""

    HIT = "hit"
    """From the cache, upstream not asked."""
    REVALIDATED = "revalidated"
    """From the cache, after upstream confirmed the tag."""
    STALE = "stale"
    """From the cache although out of date, because upstream failed or is being asked meanwhile."""
    JOIN = "join"
    """From a download that another request had begun."""
    MISS = "miss"
    """From upstream, kept for the next one."""
    THROUGH = "through"
    """From upstream, verified, not kept: no room, or nothing that is cached."""
    ERROR = "error"
    """Not at all."""
    LEFT = "left"
    """The client left before there was an answer."""


_STATUSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")


class UpstreamCounters:
    """Running totals of one upstream since the start; bytes are bodies without headers."""

    __slots__ = (
        "answers",
        "bytes_delivered",
        "bytes_from_upstream",
        "bytes_to_clients",
        "errors",
        "manifest_pulls",
        "outcomes",
        "pulls_spent",
        "timings",
        "token_requests",
        "upstream_requests",
    )

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.errors: Counter[str] = Counter()
        self.bytes_to_clients = 0
        self.bytes_delivered = 0
        self.bytes_from_upstream = 0
        self.upstream_requests = 0
        self.token_requests = 0
        self.manifest_pulls = 0
        self.pulls_spent = 0
        self.timings: Final = {outcome: Timing() for outcome in Outcome}
        self.answers: Final = {status: Histogram() for status in _STATUSES}

    def upstream_answered(self, status: int | None, seconds: float) -> None:
        """Count one HTTP request to upstream; ``status`` None: it gave no answer."""
        name = "none" if status is None else f"{status // 100}xx"
        self.answers.get(name, self.answers["none"]).observe(seconds)

    def answered(self, outcome: Outcome, sent: int, *, manifest: bool) -> None:
        """Count one request; ``sent`` is in bytes, ``manifest`` says that a whole one was sent."""
        self.outcomes[outcome] += 1
        self.bytes_to_clients += sent
        if outcome is not Outcome.ERROR:
            self.bytes_delivered += sent
        self.manifest_pulls += manifest

    def add(self, other: "UpstreamCounters") -> None:
        """Add another's totals to these."""
        self.outcomes += other.outcomes
        self.errors += other.errors
        self.bytes_to_clients += other.bytes_to_clients
        self.bytes_delivered += other.bytes_delivered
        self.bytes_from_upstream += other.bytes_from_upstream
        self.upstream_requests += other.upstream_requests
        self.token_requests += other.token_requests
        self.manifest_pulls += other.manifest_pulls
        self.pulls_spent += other.pulls_spent

    def snapshot(self) -> dict[str, object]:
        """Return the totals as JSON values.

        What is saved is the difference between what was delivered to clients, errors left out, and
        what upstream gave, so it is negative while the cache has fetched more than was read.
        """
        requests = self.outcomes.total()
        delivered = requests - self.outcomes[Outcome.ERROR] - self.outcomes[Outcome.LEFT]
        return {
            "requests": requests,
            "hits": self.outcomes[Outcome.HIT],
            "revalidated": self.outcomes[Outcome.REVALIDATED],
            "stale": self.outcomes[Outcome.STALE],
            "joins": self.outcomes[Outcome.JOIN],
            "misses": self.outcomes[Outcome.MISS],
            "through": self.outcomes[Outcome.THROUGH],
            "left": self.outcomes[Outcome.LEFT],
            "errors": dict(self.errors),
            "bytes_to_clients": self.bytes_to_clients,
            "bytes_from_upstream": self.bytes_from_upstream,
            "bytes_saved": self.bytes_delivered - self.bytes_from_upstream,
            "upstream_requests": self.upstream_requests,
            "upstream_requests_saved": delivered - self.upstream_requests,
            "token_requests": self.token_requests,
            "pulls_spent": self.pulls_spent,
            "pulls_saved": self.manifest_pulls - self.pulls_spent,
        }


class CacheCounters:
    """Running totals of the cache itself since the start."""

    __slots__ = (
        "corrupted",
        "evicted_bytes",
        "evictions",
        "mismatches",
        "prefetched_blobs",
        "prefetched_bytes",
        "prefetched_used_blobs",
        "prefetched_used_bytes",
        "prepared_answers",
        "refused_connections",
        "repaired",
        "stalled_clients",
        "storage_errors",
        "unlogged_requests",
        "verified",
        "verified_bytes",
    )

    def __init__(self) -> None:
        self.prepared_answers = 0
        self.evictions = 0
        self.evicted_bytes = 0
        self.mismatches = 0
        self.corrupted = 0
        self.repaired = 0
        self.verified = 0
        self.verified_bytes = 0
        self.prefetched_blobs = 0
        self.prefetched_bytes = 0
        self.prefetched_used_blobs = 0
        self.prefetched_used_bytes = 0
        self.storage_errors = 0
        self.stalled_clients = 0
        self.refused_connections = 0
        self.unlogged_requests = 0

    def storage_trouble(self) -> None:
        """Count one failure of the disk that was survived."""
        self.storage_errors += 1

    def unlogged(self) -> None:
        """Count one access-log line that was dropped."""
        self.unlogged_requests += 1


class TaskCounters:
    """One background task: how often it failed, and whether it runs.

    A task that has ended as it should counts as running.
    """

    __slots__ = ("failures", "is_running")

    def __init__(self) -> None:
        self.failures = 0
        self.is_running = True


class Metrics:
    """All counters of one running proxy."""

    def __init__(self, upstreams: list[str]) -> None:
        self.upstreams: Final = {name: UpstreamCounters() for name in upstreams}
        self.unrouted: Final = UpstreamCounters()
        self.cache: Final = CacheCounters()
        self.tasks: Final[dict[str, TaskCounters]] = {}
        self.readiness: Final = Readiness()
        self.loop_lag = 0.0

    def add(self, upstream: str) -> UpstreamCounters:
        """Return an upstream's counters, which begin at 0 for a new one."""
        return self.upstreams.setdefault(upstream, UpstreamCounters())

    def of(self, upstream: str | None) -> UpstreamCounters:
        """Return an upstream's counters; None stands for requests that reached no upstream."""
        return self.unrouted if upstream is None else self.upstreams[upstream]

    def total(self) -> UpstreamCounters:
        """Return the sum over all upstreams and what reached none."""
        total = UpstreamCounters()
        for counters in (*self.upstreams.values(), self.unrouted):
            total.add(counters)
        return total


class Gauge(NamedTuple):
    """One reading of something that goes up and down; ``upstream`` None for the cache itself."""

    name: str
    text: str
    value: float
    upstream: str | None = None


class _View(Collector):
    """Renders the counters in Prometheus' names and units when scraped."""

    def __init__(self, metrics: Metrics, gauges: Callable[[], list[Gauge]], version: str) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family (Prometheus text format 0.0.4)."""
        yield from self._per_upstream()
        cache = self._metrics.cache
        for name, help_text, value in (
            ("evictions", "Blobs removed to make room.", cache.evictions),
            ("evicted_bytes", "Disk bytes freed by evictions.", cache.evicted_bytes),
            ("content_mismatches", "Upstream bodies that were not their digest.", cache.mismatches),
            ("corrupted", "Held blobs that were found to have gone bad.", cache.corrupted),
            ("repaired", "Bad blobs that were fetched again.", cache.repaired),
            ("verified_blobs", "Held blobs that were hashed again.", cache.verified),
            ("verified_bytes", "Bytes that were hashed again.", cache.verified_bytes),
            ("storage_errors", "Failures of the disk that were survived.", cache.storage_errors),
            (
                "prefetched_blobs",
                "Blobs fetched before they were asked for.",
                cache.prefetched_blobs,
            ),
            ("prefetched_bytes", "Bytes of those, and of some given up.", cache.prefetched_bytes),
            ("prefetched_used_blobs", "Those asked for later.", cache.prefetched_used_blobs),
            ("prefetched_used_bytes", "Bytes of those.", cache.prefetched_used_bytes),
            ("prepared_answers", "Requests answered at once from RAM.", cache.prepared_answers),
            (
                "refused_connections",
                "Connections answered with 503 because there was no room.",
                cache.refused_connections,
            ),
            ("stalled_clients", "Clients cut off for not reading.", cache.stalled_clients),
            ("unlogged_requests", "Access-log lines dropped under load.", cache.unlogged_requests),
        ):
            yield CounterMetricFamily(f"millpond_{name}", help_text, value)
        yield from self._readings()
        yield from self._per_task()
        lag = self._metrics.loop_lag
        text = "Longest that work waited for its turn in the last seconds."
        yield GaugeMetricFamily("millpond_loop_lag_seconds", text, lag)
        info = GaugeMetricFamily("millpond_build_info", "Which Millpond runs.", labels=["version"])
        info.add_metric([self._version], 1)
        yield info

    def _readings(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for gauge in self._gauges():
            labels = [] if gauge.upstream is None else ["upstream"]
            family = families.setdefault(
                gauge.name, GaugeMetricFamily(f"millpond_{gauge.name}", gauge.text, labels=labels)
            )
            family.add_metric([] if gauge.upstream is None else [gauge.upstream], gauge.value)
        yield from families.values()

    def _per_task(self) -> Iterator[Metric]:
        failures = CounterMetricFamily(
            "millpond_background_failures", "Failures of a background task.", labels=["task"]
        )
        up = GaugeMetricFamily(
            "millpond_background_up",
            "0 while a background task waits for its restart after a failure, else 1.",
            labels=["task"],
        )
        for name, task in self._metrics.tasks.items():
            failures.add_metric([name], task.failures)
            up.add_metric([name], task.is_running)
        yield from (failures, up)

    def _per_upstream(self) -> Iterator[Metric]:
        outcomes = CounterMetricFamily(
            "millpond_requests", "Requests for content.", labels=["upstream", "outcome"]
        )
        errors = CounterMetricFamily(
            "millpond_errors", "Requests answered with an error.", labels=["upstream", "code"]
        )
        plain = {
            "bytes_to_clients": CounterMetricFamily(
                "millpond_client_bytes", "Body bytes sent to clients.", labels=["upstream"]
            ),
            "bytes_from_upstream": CounterMetricFamily(
                "millpond_upstream_bytes", "Body bytes received.", labels=["upstream"]
            ),
            "upstream_requests": CounterMetricFamily(
                "millpond_upstream_requests", "Requests sent upstream.", labels=["upstream"]
            ),
            "token_requests": CounterMetricFamily(
                "millpond_upstream_token_requests", "Tokens asked for.", labels=["upstream"]
            ),
            "manifest_pulls": CounterMetricFamily(
                "millpond_manifest_pulls", "Manifests sent to clients.", labels=["upstream"]
            ),
            "pulls_spent": CounterMetricFamily(
                "millpond_upstream_pulls",
                "Manifests fetched, which rate limits count.",
                labels=["upstream"],
            ),
        }
        for name, counters in (*self._metrics.upstreams.items(), ("", self._metrics.unrouted)):
            for outcome in Outcome:
                outcomes.add_metric([name, outcome.value], counters.outcomes[outcome])
            for code, count in counters.errors.items():
                errors.add_metric([name, code], count)
            for attribute, family in plain.items():
                family.add_metric([name], getattr(counters, attribute))
        yield from (outcomes, errors, *plain.values())
        yield from self._histograms()

    def _histograms(self) -> Iterator[Metric]:
        """Yield durations by upstream; what has not happened yet is left out."""
        by_outcome = ["upstream", "outcome"]
        first = HistogramMetricFamily(
            "millpond_time_to_first_byte_seconds",
            "From a request to the first byte of its answer.",
            labels=by_outcome,
        )
        whole = HistogramMetricFamily(
            "millpond_request_duration_seconds",
            "From a request to the last byte of its answer.",
            labels=by_outcome,
        )
        answers = HistogramMetricFamily(
            "millpond_upstream_response_seconds",
            "From a request to a registry, token server or CDN to the headers of its answer.",
            labels=["upstream", "status"],
        )
        for name, counters in (*self._metrics.upstreams.items(), ("", self._metrics.unrouted)):
            for outcome, timing in counters.timings.items():
                _add(first, [name, outcome.value], timing.first_byte)
                _add(whole, [name, outcome.value], timing.whole)
            for status, histogram in counters.answers.items():
                _add(answers, [name, status], histogram)
        yield from (first, whole, answers)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    if not histogram.is_empty:
        family.add_metric(labels, histogram.buckets(), histogram.total)


def registry(
    metrics: Metrics, gauges: Callable[[], list[Gauge]], version: str
) -> CollectorRegistry:
    """Return a Prometheus registry over the counters, the gauges, and this process."""
    collected = CollectorRegistry(auto_describe=False)
    collected.register(_View(metrics, gauges, version))
    ProcessCollector(registry=collected)
    PlatformCollector(registry=collected)
    return collected
