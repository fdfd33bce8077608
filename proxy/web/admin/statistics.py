"""The statistics of ``/-/stats``, complete for operators and without names for other clients."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from proxy import VERSION
from proxy.access.limits import ClientLimits
from proxy.content.content import Content
from proxy.content.downloads import Downloads
from proxy.content.pins import Pins
from proxy.runtime.metrics import Metrics
from proxy.upstream.circuit_breaker import CircuitBreaker
from proxy.upstream.registry import Upstream

TOP_CLIENTS: Final = 10
"""Number of clients in ``/-/stats`` by requests, and again by bytes."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counters since the process started, and the state of the cache."""

    metrics: Metrics
    content: Content
    downloads: Downloads
    upstreams: Mapping[str, Upstream]
    pins: Pins
    limits: ClientLimits
    started: float = field(default_factory=time.monotonic)

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self.started, 3)

    def snapshot(self) -> dict[str, Any]:
        """Return all numbers except ``oldest_use``: since the start, and current.

        Units are seconds and bytes. Includes names, which only operators may see.
        """
        return {
            "version": VERSION,
            "uptime_seconds": self.uptime,
            "total": self.metrics.total().snapshot(),
            "upstreams": {
                name: self.metrics.of(name).snapshot() | state_of(upstream)
                for name, upstream in self.upstreams.items()
            },
            "cache": {
                **{name.removeprefix("cache_"): value for name, _, value in self.usage()},
                **self.metrics.cache.snapshot(),
            },
            "downloads": self.in_progress(),
            "clients": self.limits.top(TOP_CLIENTS),
        }

    def in_progress(self) -> list[dict[str, Any]]:
        """Return the downloads in progress, with names."""
        return [
            {
                "digest": download.digest,
                "upstream": download.target.upstream,
                "repository": download.target.repo,
                "bytes": download.written,
                "size": download.size,
                "readers": download.readers,
            }
            for download in self.downloads.all()
        ]

    async def complete(self) -> dict[str, Any]:
        """Return the numbers of ``/-/stats``, with names."""
        stats = self.snapshot()
        stats["cache"]["oldest_use"] = await self.content.evictor.oldest_use()
        return stats

    def usage(self) -> list[tuple[str, str, int]]:
        """Return name, help text and value of the numbers in both statistics and metrics."""
        usage = self.content.usage()
        return [
            ("cache_bytes", "Disk bytes in use or reserved.", usage.used_bytes),
            ("cache_limit_bytes", "Maximum disk bytes that may be used.", usage.limit_bytes),
            ("cache_pinned_bytes", "Disk bytes that are pinned.", self.pins.bytes),
            ("cache_quarantined_bytes", "Disk bytes of corrupt content.", usage.quarantined_bytes),
            ("cache_files", "Blobs and manifests held.", usage.files),
            ("index_bytes", "Bytes of the index files.", usage.index_bytes),
            ("index_dropped_rows", "Deleted unreadable index rows.", usage.index_dropped_rows),
        ]


def public(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the statistics without names of content and without our address at a registry.

    A digest is left out too: for public images it leads to the name.
    """
    downloads = [
        {name: download[name] for name in ("upstream", "bytes", "size", "readers")}
        for download in stats["downloads"]
    ]
    upstreams = {}
    for name, numbers in stats["upstreams"].items():
        limit = dict(numbers["rate_limit"] or {})
        limit.pop("source", None)
        upstreams[name] = numbers | {"rate_limit": limit or None}
    return stats | {"downloads": downloads, "upstreams": upstreams, "clients": []}


def state_of(upstream: Upstream) -> dict[str, object]:
    """Return the current state of an upstream."""
    breaker, budget = upstream.circuit_breaker, upstream.budget
    left = upstream.credentials.expires_in
    limit = {
        "limit": budget.limit,
        "remaining": budget.remaining,
        "window_seconds": budget.window,
        "refills_at": budget.refills_at,
        "source": budget.source,
    }
    return {
        "up": breaker.is_up,
        "offline": upstream.is_offline,
        "offline_mode": upstream.offline.mode.value,
        "circuit": breaker.state.name.lower(),
        "last_success": last_success(breaker),
        "rate_limit": None if budget.share is None else limit,
        "credentials": {
            "kind": upstream.credentials.kind,
            "expires_in_seconds": None if left is None else round(left),
        },
    }


def last_success(breaker: CircuitBreaker) -> float | None:
    """Return the time of an upstream's last answer, Unix seconds."""
    since = breaker.seconds_since_answer
    return None if since is None else round(time.time() - since, 3)
