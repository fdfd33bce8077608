"""Everything of our own: ``/-/stats``, ``/-/healthz``, ``/-/readyz``, ``/metrics``, ``control``."""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp.web import BaseRequest, Response, StreamResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from proxy import VERSION
from proxy.cache.holdings import Holdings
from proxy.errors import NotFound, RegistryError, Unsupported
from proxy.flights import Flights
from proxy.metrics import Gauge, Metrics, registry
from proxy.upstream.budget import Budget
from proxy.web.control import Control

JSON: Final = "application/json"


class Admin:
    """Shows what the proxy does to everybody, and lets the trusted look after it."""

    def __init__(
        self,
        metrics: Metrics,
        holdings: Holdings,
        *,
        flights: Flights,
        budgets: Mapping[str, Budget],
        control: Control,
    ) -> None:
        self._control = control
        self._metrics = metrics
        self._budgets = budgets
        self._index = holdings.index
        self._evictor = holdings.evictor
        self._store = holdings.store
        self._flights = flights
        self._started = time.monotonic()
        self._prometheus = registry(metrics, self._gauges, VERSION)
        self.is_stopping = False

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request that came over TCP."""
        return await self._handle(request, self._control.token.require)

    async def handle_trusted(self, request: BaseRequest) -> StreamResponse:
        """Answer one request that came through the admin socket."""
        return await self._handle(request, _trust)

    async def _handle(
        self, request: BaseRequest, require: Callable[[BaseRequest], Awaitable[None]]
    ) -> StreamResponse:
        try:
            if self._control.has(request.path):
                await require(request)
                return await self._control.answer(request)
            return self._answer(request)
        except RegistryError as error:
            return Response(
                status=error.status, body=error.body(), headers=error.headers(), content_type=JSON
            )

    def _answer(self, request: BaseRequest) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise Unsupported(f"{request.method}: nothing here can be changed")
        match request.path:
            case "/metrics":
                return Response(
                    body=generate_latest(self._prometheus),
                    headers={"Content-Type": CONTENT_TYPE_LATEST},
                )
            case "/-/stats":
                return _json(self.stats())
            case "/-/healthz":
                return _json({"status": "ok"})
            case "/-/readyz" if self.is_stopping:
                return _json({"status": "stopping"}, status=503)
            case "/-/readyz" if reasons := self._failures():
                return _json({"status": "not ready", "reasons": reasons}, status=503)
            case "/-/readyz":
                return _json({"status": "ready"})
            case _:
                raise NotFound(
                    "no such page; there are /-/stats, /-/healthz, /-/readyz and /metrics"
                )

    def _failures(self) -> list[str]:
        """Return what has failed and is tried again."""
        return [reason for reason in (self._index.failure, self._evictor.failure) if reason]

    def stats(self) -> dict[str, Any]:
        """Return the numbers of ``/-/stats``: totals since the start, and what is held now.

        Seconds and bytes throughout.
        """
        usage, cache = self._index.usage(), self._metrics.cache
        return {
            "version": VERSION,
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "total": self._metrics.total().snapshot(),
            "upstreams": {
                name: counters.snapshot() | {"rate_limit": _rate_limit(self._budgets[name])}
                for name, counters in self._metrics.upstreams.items()
            },
            "cache": {
                "bytes": self._evictor.used,
                "limit_bytes": self._evictor.limit,
                "pinned_bytes": self._control.pins.bytes,
                "quarantined_bytes": self._store.quarantine.bytes,
                "files": usage.files,
                "evictions": cache.evictions,
                "evicted_bytes": cache.evicted_bytes,
                "oldest_use": self._evictor.oldest_use(),
                "corrupted": cache.corrupted,
                "repaired": cache.repaired,
                "verified_blobs": cache.verified,
                "content_mismatches": cache.mismatches,
                "storage_errors": cache.storage_errors,
                "index_bytes": self._index.file_bytes,
                "index_dropped_rows": self._index.dropped_rows,
                "prefetched_blobs": cache.prefetched_blobs,
                "prefetched_bytes": cache.prefetched_bytes,
                "prefetched_used_blobs": cache.prefetched_used_blobs,
                "prefetched_used_bytes": cache.prefetched_used_bytes,
            },
            "downloads": [
                {
                    "digest": flight.digest,
                    "upstream": flight.target.upstream,
                    "repository": flight.target.repo,
                    "bytes": flight.written,
                    "size": flight.size,
                }
                for flight in self._flights.all()
            ],
        }

    def _gauges(self) -> list[Gauge]:
        gauges = [
            Gauge("cache_bytes", "Disk bytes in use or promised.", self._evictor.used),
            Gauge("cache_limit_bytes", "Most disk bytes that may be used.", self._evictor.limit),
            Gauge("cache_pinned_bytes", "Disk bytes that are pinned.", self._control.pins.bytes),
            Gauge(
                "cache_quarantined_bytes",
                "Disk bytes of content that has gone bad.",
                self._store.quarantine.bytes,
            ),
            Gauge(
                "cache_oldest_use_seconds",
                "How long the coldest content that may be evicted has not been used.",
                0.0 if (oldest := self._evictor.oldest_use()) is None else time.time() - oldest,
            ),
            Gauge("cache_files", "Blobs and manifests held.", self._index.usage().files),
            Gauge("index_bytes", "Bytes of the index's own files.", self._index.file_bytes),
            Gauge(
                "index_dropped_rows",
                "Rows of the index that could not be read and are deleted.",
                self._index.dropped_rows,
            ),
            Gauge("downloads_in_progress", "Downloads now.", len(self._flights.all())),
        ]
        for name, budget in self._budgets.items():
            if budget.share is not None and budget.limit and budget.remaining is not None:
                limit, left = "Pulls that upstream allows.", "Pulls that are left of those."
                gauges.append(Gauge("upstream_rate_limit", limit, budget.limit, name))
                gauges.append(Gauge("upstream_rate_limit_remaining", left, budget.remaining, name))
        return gauges


async def _trust(_: BaseRequest) -> None:
    """Ask for nothing: who reaches the socket may read the cache's directory."""


def _rate_limit(budget: Budget) -> dict[str, object] | None:
    if budget.share is None:
        return None
    return {
        "limit": budget.limit,
        "remaining": budget.remaining,
        "window_seconds": budget.window,
        "source": budget.source,
    }


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(status=status, body=json.dumps(document).encode(), content_type=JSON)
