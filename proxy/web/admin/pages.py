"""Everything of our own: ``/-/stats``, ``/-/healthz``, ``/-/readyz``, ``/metrics``, ``control``."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp.web import BaseRequest, Response, StreamResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from proxy import VERSION
from proxy.access.principals import OPERATOR, Principal
from proxy.content.content import Content
from proxy.content.downloads import Downloads
from proxy.core.errors import Denied, PathNotFound, RegistryError, Unsupported
from proxy.runtime.metrics import Metrics
from proxy.runtime.prometheus_view import Gauge, registry
from proxy.upstream.circuit_breaker import CircuitBreaker
from proxy.upstream.registry import Upstream
from proxy.web import audited
from proxy.web.admin import welcome
from proxy.web.admin.actions import Control
from proxy.web.admin.dashboard.serving import Dashboard
from proxy.web.admin.documents import refusal, reply
from proxy.web.gate import presented
from proxy.web.paced import PacedResponse

TOP_CLIENTS: Final = 10
"""Clients in ``/-/stats``: so many with the most requests, and so many with the most bytes."""


class Admin:
    """Shows what the proxy does to everybody, and lets the trusted look after it."""

    def __init__(
        self,
        metrics: Metrics,
        content: Content,
        *,
        downloads: Downloads,
        upstreams: Mapping[str, Upstream],
        control: Control,
    ) -> None:
        self._control = control
        self._dashboard = Dashboard()
        self._metrics = metrics
        self._upstreams = upstreams
        self._content = content
        self._downloads = downloads
        self._started = time.monotonic()
        self._oldest_use: float | None = None
        """What ``/metrics`` shows, as of its last request."""
        self._prometheus = registry(metrics, self._gauges, VERSION)
        self.is_stopping = False

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request that came over TCP."""
        return await self._handle(
            request, lambda: self._control.access.authorize(*presented(request))
        )

    async def handle_trusted(self, request: BaseRequest) -> StreamResponse:
        """Answer one request that came through the admin socket."""
        return await self._handle(request, self._operator)

    async def _operator(self) -> Principal:
        self._control.access.enforce(OPERATOR)
        return OPERATOR

    async def _handle(
        self, request: BaseRequest, authorize: Callable[[], Awaitable[Principal]]
    ) -> StreamResponse:
        """Answer; ``authorize`` returns who may administer, or raises ``RegistryError``."""
        try:
            if self._control.has(request.path):
                return await self._operate(request, authorize)
            self._control.access.observe(request.remote)
            if request.path == "/-/stats":
                _require_read(request)
                return await self._stats(authorize)
            return await self._answer(request)
        except RegistryError as error:
            return refusal(error)

    async def _operate(
        self, request: BaseRequest, authorize: Callable[[], Awaitable[Principal]]
    ) -> StreamResponse:
        """Answer a request of the operator, and record it. Raises ``RegistryError``."""
        principal: Principal | None = None
        failure: RegistryError | None = None
        try:
            principal = await authorize()
            _refuse_browsers(request)
            return await self._control.answer(request)
        except RegistryError as error:
            failure = error
            raise
        finally:
            if self._control.audit.is_on:
                self._control.audit.record(audited.administered(request, principal, failure))

    async def _stats(self, authorize: Callable[[], Awaitable[Principal]]) -> Response:
        """Return the statistics, without names for a client that may not administer."""
        stats = self.stats()
        stats["cache"]["oldest_use"] = await self._content.evictor.oldest_use()
        try:
            await authorize()
        except RegistryError:
            return reply(_public(stats))
        return reply(stats)

    async def _answer(self, request: BaseRequest) -> Response:
        _require_read(request)
        match request.path:
            case "/":
                return welcome.page(request)
            case "/metrics":
                self._oldest_use = await self._content.evictor.oldest_use()
                return PacedResponse(
                    body=generate_latest(self._prometheus),
                    headers={"Content-Type": CONTENT_TYPE_LATEST},
                )
            case "/-/healthz":
                return reply({"status": "ok"})
            case "/-/readyz" if self.is_stopping:
                return reply({"status": "stopping"}, status=503)
            case "/-/readyz" if reasons := (
                self._content.failures() | dict(self._metrics.readiness.reasons)
            ):
                return reply({"status": "not ready", "reasons": reasons}, status=503)
            case "/-/readyz":
                return reply({"status": "ready"})
            case path if self._dashboard.has(path):
                return self._dashboard.answer(request)
            case _:
                raise PathNotFound(
                    "no such page; there are /-/, /-/stats, /-/healthz, /-/readyz and /metrics"
                )

    def stats(self) -> dict[str, Any]:
        """Return the numbers of ``/-/stats`` but for ``oldest_use``: since the start, and now.

        Seconds and bytes throughout. Includes names, which only the trusted may see.
        """
        return {
            "version": VERSION,
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "total": self._metrics.total().snapshot(),
            "upstreams": {
                name: self._metrics.of(name).snapshot() | _state(upstream)
                for name, upstream in self._upstreams.items()
            },
            "cache": {
                **{name.removeprefix("cache_"): value for name, _, value in self._usage()},
                **self._metrics.cache.snapshot(),
            },
            "downloads": [
                {
                    "digest": download.digest,
                    "upstream": download.target.upstream,
                    "repository": download.target.repo,
                    "bytes": download.written,
                    "size": download.size,
                }
                for download in self._downloads.all()
            ],
            "clients": self._control.limits.top(TOP_CLIENTS),
        }

    def _usage(self) -> list[tuple[str, str, int]]:
        """Return name, help text and value of the numbers in both statistics and metrics."""
        usage = self._content.usage()
        return [
            ("cache_bytes", "Disk bytes in use or promised.", usage.used_bytes),
            ("cache_limit_bytes", "Most disk bytes that may be used.", usage.limit_bytes),
            ("cache_pinned_bytes", "Disk bytes that are pinned.", self._control.pins.bytes),
            ("cache_quarantined_bytes", "Disk bytes of corrupt content.", usage.quarantined_bytes),
            ("cache_files", "Blobs and manifests held.", usage.files),
            ("index_bytes", "Bytes of the index's own files.", usage.index_bytes),
            ("index_dropped_rows", "Unreadable rows of the index.", usage.index_dropped_rows),
        ]

    def _gauges(self) -> list[Gauge]:
        oldest = self._oldest_use
        gauges = [
            *(Gauge(*known) for known in self._usage()),
            Gauge(
                "cache_oldest_use_seconds",
                "How long the coldest content that may be evicted has not been used.",
                0.0 if oldest is None else time.time() - oldest,
            ),
            Gauge("downloads_in_progress", "Downloads now.", len(self._downloads.all())),
        ]
        for name, upstream in self._upstreams.items():
            gauges += _health(name, upstream.circuit_breaker)
            if (seconds := upstream.credentials.expires_in) is not None:
                text = "Seconds until the credentials expire."
                gauges.append(Gauge("upstream_credentials_expire_seconds", text, seconds, name))
            budget = upstream.budget
            if budget.share is not None and budget.limit and budget.remaining is not None:
                limit, left = "Pulls that upstream allows.", "Pulls that are left of those."
                gauges.append(Gauge("upstream_rate_limit", limit, budget.limit, name))
                gauges.append(Gauge("upstream_rate_limit_remaining", left, budget.remaining, name))
        return gauges


def _refuse_browsers(request: BaseRequest) -> None:
    """Raise ``Denied`` for a change that a web page asks for (RFC 6454 §7).

    An operator's browser sends it from the operator's network, with the operator's certificate.
    """
    if request.method not in ("GET", "HEAD") and "Origin" in request.headers:
        raise Denied("web pages cannot change anything here")


def _require_read(request: BaseRequest) -> None:
    if request.method not in ("GET", "HEAD"):
        raise Unsupported(f"{request.method}: nothing here can be changed")


def _public(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the statistics without names of content and without our address at a registry.

    A digest is left out too: for public images it leads to the name.
    """
    downloads = [
        {name: download[name] for name in ("upstream", "bytes", "size")}
        for download in stats["downloads"]
    ]
    upstreams = {}
    for name, numbers in stats["upstreams"].items():
        limit = dict(numbers["rate_limit"] or {})
        limit.pop("source", None)
        upstreams[name] = numbers | {"rate_limit": limit or None}
    return stats | {"downloads": downloads, "upstreams": upstreams, "clients": []}


def _health(name: str, breaker: CircuitBreaker) -> list[Gauge]:
    """Return what is known of an upstream's state."""
    gauges = [
        Gauge("upstream_up", "0 if it failed since its last answer.", breaker.is_up, name),
        Gauge(
            "upstream_circuit_state",
            "0 closed, 1 the next request probes, 2 open: the upstream is left alone.",
            breaker.state.value,
            name,
        ),
    ]
    if (last := _last_success(breaker)) is not None:
        text = "When it answered last, Unix seconds."
        gauges.append(Gauge("upstream_last_success_timestamp_seconds", text, last, name))
    return gauges


def _state(upstream: Upstream) -> dict[str, object]:
    breaker, budget = upstream.circuit_breaker, upstream.budget
    left = upstream.credentials.expires_in
    limit = {
        "limit": budget.limit,
        "remaining": budget.remaining,
        "window_seconds": budget.window,
        "source": budget.source,
    }
    return {
        "up": breaker.is_up,
        "offline": upstream.is_offline,
        "offline_mode": upstream.offline.mode.value,
        "circuit": breaker.state.name.lower(),
        "last_success": _last_success(breaker),
        "rate_limit": None if budget.share is None else limit,
        "credentials": {
            "kind": upstream.credentials.kind,
            "expires_in_seconds": None if left is None else round(left),
        },
    }


def _last_success(breaker: CircuitBreaker) -> float | None:
    """Return when an upstream answered last, Unix seconds."""
    since = breaker.seconds_since_answer
    return None if since is None else round(time.time() - since, 3)
