"""Counters of one running proxy.

Each counter is declared once, as a field of the class that it belongs to, with its HELP text.
``prometheus_view`` exposes them; ``/-/stats`` shows those of ``CacheCounters`` that are declared
``in_stats``.

The hot path changes plain integers, which Prometheus reads when it scrapes: a labelled Prometheus
counter costs 20 times as much. Every request for content counts once, under exactly one outcome.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from proxy.core.sources import Place
from proxy.runtime.declarations import Histogram, counter, counter_by, histogram_by
from proxy.runtime.part_counters import (
    LIMITS,
    FleetCounters,
    HookCounters,
    LimitCounters,
    NotificationCounters,
    PolicyCounters,
    ProcessGauges,
    TaskCounters,
    WorkerCounters,
)
from proxy.runtime.readiness import Readiness
from proxy.runtime.tally import Tally


class Outcome(StrEnum):
    """How a request was answered."""

    HIT = "hit"
    """From the cache, without a request to upstream."""
    REVALIDATED = "revalidated"
    """From the cache, after upstream confirmed the tag."""
    STALE = "stale"
    """From the cache although out of date: upstream failed, or the check runs in the background."""
    JOIN = "join"
    """From a download that another request started."""
    MISS = "miss"
    """From upstream, and stored."""
    THROUGH = "through"
    """From upstream, verified but not stored: no room, or a kind of answer that is not cached."""
    ERROR = "error"
    """With an error."""
    LEFT = "left"
    """Not at all: the client disconnected first."""


_STATS_KEYS: Final = {
    "hits": Outcome.HIT,
    "revalidated": Outcome.REVALIDATED,
    "stale": Outcome.STALE,
    "joins": Outcome.JOIN,
    "misses": Outcome.MISS,
    "through": Outcome.THROUGH,
    "left": Outcome.LEFT,
}
_CHECKS: Final = (
    *("moved", "unchanged", "fresh", "gone"),
    *("held_back", "deferred", "failed", "skipped"),
)
"""Outcomes of checks of tags without a client."""

_HITS: Final = (Outcome.HIT, Outcome.REVALIDATED, Outcome.STALE, Outcome.JOIN)
_STATUSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")


@dataclass(slots=True)
class UpstreamCounters:
    """Totals of one upstream since the start, by the label ``upstream``; bytes are of bodies."""

    outcomes: Counter[Outcome] = counter_by(
        "outcome", "Requests for content, by outcome.", Outcome, name="requests"
    )
    errors: Counter[str] = counter_by(
        "code", "Requests answered with an error, by OCI error code.", name="errors"
    )
    bytes_to_clients: int = counter("Body bytes sent to clients.", name="client_bytes")
    confirmations: Counter[str] = counter_by(
        "outcome",
        "Answers of upstream about clients that pull as themselves; stale: no answer, and the "
        "client counted as confirmed.",
        ("confirmed", "refused", "failed", "stale"),
        name="confirmations",
    )
    bytes_from_upstream: int = counter("Body bytes received from upstream.", name="upstream_bytes")
    upstream_requests: int = counter("Requests sent to upstream.")
    token_requests: int = counter("Requests sent to token servers.", name="upstream_token_requests")
    manifest_pulls: int = counter("Manifests sent to clients.")
    pulls_spent: int = counter(
        "Manifests fetched from upstream: registries count these in rate limits.",
        name="upstream_pulls",
    )
    first_byte: dict[Outcome, Histogram] = histogram_by(
        "outcome",
        "Time from a request to the first byte of its response.",
        Outcome,
        name="time_to_first_byte_seconds",
    )
    duration: dict[Outcome, Histogram] = histogram_by(
        "outcome",
        "Time from a request to the last byte of its response.",
        Outcome,
        name="request_duration_seconds",
    )
    responses: dict[str, Histogram] = histogram_by(
        "status",
        "Time from a request to a registry, token server or CDN to the headers of its response.",
        _STATUSES,
        name="upstream_response_seconds",
    )
    source_requests: Counter[str] = counter_by(
        "source",
        "Requests for content that succeeded, by where the content came from.",
        Place,
        name="source_requests",
    )
    source_bytes: Counter[str] = counter_by(
        "source",
        "Body bytes sent to clients, by where the content came from.",
        Place,
        name="source_bytes",
    )
    bytes_delivered: int = 0
    """Body bytes sent to clients, without error documents."""

    def upstream_answered(self, status: int | None, seconds: float) -> None:
        """Count one HTTP request to upstream; ``status`` None: there was no response."""
        name = "none" if status is None else f"{status // 100}xx"
        self.responses.get(name, self.responses["none"]).observe(seconds)

    def answered(self, outcome: Outcome, sent: int, *, manifest: bool) -> None:
        """Count one request; ``sent`` is in bytes, ``manifest`` means that a whole one was sent."""
        self.outcomes[outcome] += 1
        self.bytes_to_clients += sent
        if outcome is not Outcome.ERROR:
            self.bytes_delivered += sent
        self.manifest_pulls += manifest

    def fetched(self, place: Place, sent: int) -> None:
        """Count the source of a request's content that was not in the cache."""
        self.source_requests[place] += 1
        self.source_bytes[place] += sent

    @property
    def hits(self) -> int:
        """Requests that needed no body from upstream."""
        return sum(self.outcomes[outcome] for outcome in _HITS)

    def derive(self) -> None:
        """Compute the counts of the disk: all content without another source.

        It is not counted, because requests from memory cost a few microseconds each.
        """
        failed = self.outcomes[Outcome.ERROR] + self.outcomes[Outcome.LEFT]
        self.source_requests[Place.DISK] = self.source_bytes[Place.DISK] = 0
        self.source_requests[Place.DISK] = (
            self.outcomes.total() - failed - self.source_requests.total()
        )
        self.source_bytes[Place.DISK] = self.bytes_delivered - self.source_bytes.total()

    def timed(self, outcome: Outcome, first_byte: float, whole: float) -> None:
        """Record the durations of one request, in seconds from its start."""
        self.first_byte[outcome].observe(first_byte)
        self.duration[outcome].observe(whole)

    def add(self, other: "UpstreamCounters") -> None:
        """Add another upstream's totals to these; histograms are left out."""
        for each in fields(self):
            if not isinstance(total := getattr(self, each.name), int | Counter):
                continue
            setattr(self, each.name, total + getattr(other, each.name))

    def snapshot(self) -> dict[str, object]:
        """Return the totals as JSON values.

        Saved bytes are those delivered to clients minus those fetched from upstream: negative
        while the cache has fetched more than clients have read.
        """
        self.derive()
        requests = self.outcomes.total()
        delivered = requests - self.outcomes[Outcome.ERROR] - self.outcomes[Outcome.LEFT]
        return {
            "requests": requests,
            **{key: self.outcomes[outcome] for key, outcome in _STATS_KEYS.items()},
            "errors": dict(self.errors),
            "sources": {
                place: {"requests": self.source_requests[place], "bytes": self.source_bytes[place]}
                for place in Place
            },
            "bytes_to_clients": self.bytes_to_clients,
            "bytes_from_upstream": self.bytes_from_upstream,
            "bytes_saved": self.bytes_delivered - self.bytes_from_upstream,
            "upstream_requests": self.upstream_requests,
            "upstream_requests_saved": delivered - self.upstream_requests,
            "token_requests": self.token_requests,
            "pulls_spent": self.pulls_spent,
            "pulls_saved": self.manifest_pulls - self.pulls_spent,
        }


@dataclass(slots=True)
class CacheCounters:
    """Totals of the cache itself since the start."""

    evictions: int = counter("Blobs evicted to make room.")
    evicted_bytes: int = counter("Disk bytes freed by evictions.")
    mismatches: int = counter(
        "Upstream bodies that did not match their digest or size.", name="content_mismatches"
    )
    corrupted: int = counter("Stored blobs that were found corrupted.")
    repaired: int = counter("Corrupted blobs that were fetched again.")
    verified: int = counter("Stored blobs that were hashed again.", name="verified_blobs")
    verified_bytes: int = counter("Bytes of stored blobs that were hashed again.", in_stats=False)
    storage_errors: int = counter("Disk errors that Millpond recovered from.")
    prefetched_blobs: int = counter("Blobs fetched before a client requested them.")
    prefetched_bytes: int = counter("Bytes of prefetched blobs, abandoned ones included.")
    prefetched_used_blobs: int = counter("Prefetched blobs that a client requested later.")
    prefetched_used_bytes: int = counter("Bytes of prefetched blobs that a client requested later.")
    warmed_images: int = counter("Complete images fetched or found ahead of clients.")
    warm_failures: int = counter("Images that could not be fetched completely ahead of clients.")
    watch_checks: Counter[str] = counter_by(
        "outcome", "Checks of watched tags.", _CHECKS, name="watch_checks"
    )
    hook_checks: Counter[str] = counter_by(
        "outcome", "Checks of tags that webhooks reported.", _CHECKS, name="hook_checks"
    )
    prepared_answers: int = counter("Requests answered from the response cache.", in_stats=False)
    refused_connections: int = counter("Connections answered with 503 because of the limit.")
    stalled_clients: int = counter("Clients disconnected because they stopped reading.")
    unlogged_requests: int = counter(
        "Request lines dropped under load, or not written.", in_stats=False
    )
    audit_failures: int = counter("Failed attempts to write the audit log.", in_stats=False)
    audit_lost_lines: int = counter("Audit lines that could not be kept.", in_stats=False)
    bucket_requests: Counter[str] = counter_by(
        "operation",
        "Requests to the bucket; a large put and a list are one each.",
        ("get", "head", "put", "list", "delete"),
        name="bucket_requests",
    )
    bucket_read_bytes: int = counter("Bytes of content read from the bucket.")
    bucket_uploads: int = counter("Objects written to the bucket.")
    bucket_uploaded_bytes: int = counter("Bytes of content written to the bucket.")
    bucket_failures: int = counter("Failures of the bucket that Millpond recovered from.")
    bucket_evictions: int = counter("Objects deleted from the bucket to make room.")
    bucket_evicted_bytes: int = counter("Bytes of objects deleted from the bucket to make room.")
    access_decisions: Counter[str] = counter_by(
        "outcome",
        "Decisions of the access rules; login: denied to an anonymous client.",
        ("allowed", "denied", "login"),
        name="access_decisions",
    )

    def count_storage_error(self) -> None:
        """Count one disk error."""
        self.storage_errors += 1

    def unlogged(self, lines: int) -> None:
        """Count dropped request lines."""
        self.unlogged_requests += lines

    def snapshot(self) -> dict[str, int]:
        """Return the totals of ``/-/stats`` by the names of their metrics."""
        return {
            about.name or each.name: getattr(self, each.name)
            for each in fields(self)
            if (about := each.metadata["metric"]).in_stats
        }


class Metrics:
    """All counters of one running proxy."""

    def __init__(self, upstreams: Iterable[str]) -> None:
        self.upstreams: Final = {name: UpstreamCounters() for name in upstreams}
        self.unrouted: Final = UpstreamCounters()
        self.cache: Final = CacheCounters()
        self.tasks: Final[dict[str, TaskCounters]] = {}
        self.workers: Final[dict[str, WorkerCounters]] = {}
        self.limits: Final = {name: LimitCounters() for name in LIMITS}
        self.policies: Final[defaultdict[str, PolicyCounters]] = defaultdict(PolicyCounters)
        self.hooks: Final[defaultdict[str, HookCounters]] = defaultdict(HookCounters)
        self.notifications: Final[dict[str, NotificationCounters]] = {}
        self.fleet: Final = FleetCounters()
        self.process: Final = ProcessGauges()
        self.tally: Final = Tally()
        self.readiness: Final = Readiness()

    def add(self, upstream: str) -> UpstreamCounters:
        """Return an upstream's counters, which start at 0 for a new one."""
        return self.upstreams.setdefault(upstream, UpstreamCounters())

    def of(self, upstream: str | None) -> UpstreamCounters:
        """Return an upstream's counters; None stands for requests without an upstream."""
        return self.unrouted if upstream is None else self.upstreams[upstream]

    def total(self) -> UpstreamCounters:
        """Return the sum over all upstreams and the requests without one."""
        total = UpstreamCounters()
        for counters in (*self.upstreams.values(), self.unrouted):
            total.add(counters)
        return total
