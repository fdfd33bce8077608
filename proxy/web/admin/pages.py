"""Millpond's own pages: ``/-/stats``, ``/-/healthz``, ``/-/readyz``, ``/metrics``, ``actions``."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp.web import BaseRequest, Response, StreamResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from proxy import VERSION
from proxy.access.principals import OPERATOR, Principal
from proxy.core.errors import Denied, PathNotFound, RegistryError, StorageError, Unsupported
from proxy.runtime.prometheus_view import Gauge, registry
from proxy.upstream.circuit_breaker import CircuitBreaker
from proxy.web import audit_events
from proxy.web.admin import welcome
from proxy.web.admin.actions import AdminActions
from proxy.web.admin.api.application import Api
from proxy.web.admin.api.routes import PREFIX
from proxy.web.admin.dashboard.serving import Dashboard
from proxy.web.admin.documents import refusal, reply, unavailable
from proxy.web.admin.sites import Sites
from proxy.web.admin.statistics import Statistics, last_success, public
from proxy.web.gate import presented
from proxy.web.pacing import PacedResponse


class Admin:
    """Serves statistics to every client, and administration to operators."""

    def __init__(
        self, statistics: Statistics, actions: AdminActions, api: Api, sites: Sites
    ) -> None:
        self._statistics = statistics
        self._actions = actions
        self._dashboard = Dashboard()
        self._api = api
        self.sites: Final = sites
        self._metrics = statistics.metrics
        self._upstreams = statistics.upstreams
        self._content = statistics.content
        self.stats: Final = statistics.snapshot
        self._oldest_use: float | None = None
        """The content of ``/metrics``, as of its last request."""
        self._prometheus = registry(self._metrics, self._gauges, VERSION)
        self.is_stopping = False

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request that came over TCP."""
        try:
            self.sites.check(request)
        except RegistryError as error:
            if self._actions.audit.is_on:
                self._actions.audit.record(audit_events.of_admin_request(request, None, error))
            return refusal(error)
        return await self._handle(
            request, lambda: self._actions.access.authorize(*presented(request))
        )

    async def handle_trusted(self, request: BaseRequest) -> StreamResponse:
        """Answer one request that came through the admin socket."""
        return await self._handle(request, self._operator)

    async def _operator(self) -> Principal:
        self._actions.access.enforce(OPERATOR)
        return OPERATOR

    async def _handle(
        self, request: BaseRequest, authorize: Callable[[], Awaitable[Principal]]
    ) -> StreamResponse:
        """Answer; ``authorize`` returns who may administer, or raises ``RegistryError``."""
        try:
            if request.path.startswith(PREFIX):
                return await self._api.handle(request, authorize)
            if self._actions.has(request.path):
                return await self._operate(request, authorize)
            self._actions.access.observe(request.remote)
            if request.path == "/-/stats":
                _require_read(request)
                return await self._stats(request, authorize)
            return await self._answer(request)
        except RegistryError as error:
            return refusal(error)
        except StorageError as error:
            return refusal(unavailable(request, error))

    async def _operate(
        self, request: BaseRequest, authorize: Callable[[], Awaitable[Principal]]
    ) -> StreamResponse:
        """Answer a request of the operator, and record it. Raises ``RegistryError``."""
        principal: Principal | None = None
        failure: RegistryError | None = None
        try:
            principal = await authorize()
            _refuse_browsers(request)
            return await self._actions.answer(request)
        except RegistryError as error:
            failure = error
            raise
        except StorageError as error:
            failure = unavailable(request, error)
            raise failure from error
        finally:
            if self._actions.audit.is_on:
                self._actions.audit.record(
                    audit_events.of_admin_request(request, principal, failure)
                )

    async def _stats(
        self, request: BaseRequest, authorize: Callable[[], Awaitable[Principal]]
    ) -> Response:
        """Return the statistics, without names for a client that may not administer."""
        stats = await self._statistics.complete()
        try:
            await authorize()
        except RegistryError as error:
            audit_events.record_wrong_login(self._actions.audit, request, error)
            return reply(public(stats))
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

    def _gauges(self) -> list[Gauge]:
        oldest = self._oldest_use
        gauges = [
            *(Gauge(*known) for known in self._statistics.usage()),
            Gauge(
                "cache_oldest_use_seconds",
                "Time since the last use of the coldest content that may be evicted.",
                0.0 if oldest is None else time.time() - oldest,
            ),
            Gauge("downloads_in_progress", "Downloads now.", len(self._statistics.downloads.all())),
        ]
        for name, upstream in self._upstreams.items():
            gauges += _health(name, upstream.circuit_breaker)
            if (seconds := upstream.credentials.expires_in) is not None:
                text = "Seconds until the credentials expire, if known."
                gauges.append(Gauge("upstream_credentials_expire_seconds", text, seconds, name))
            budget = upstream.budget
            if budget.share is not None and budget.limit and budget.remaining is not None:
                limit, left = "Pulls that the registry allows.", "Pulls that are left of the limit."
                gauges.append(Gauge("upstream_rate_limit", limit, budget.limit, name))
                gauges.append(Gauge("upstream_rate_limit_remaining", left, budget.remaining, name))
        return gauges


def _refuse_browsers(request: BaseRequest) -> None:
    """Raise ``Denied`` for a change by a web page (RFC 6454 §7).

    An operator's browser sends it from the operator's network, with the operator's certificate.
    """
    if request.method not in ("GET", "HEAD") and "Origin" in request.headers:
        raise Denied("web pages cannot change anything here")


def _require_read(request: BaseRequest) -> None:
    if request.method not in ("GET", "HEAD"):
        raise Unsupported(f"{request.method}: this page is read-only")


def _health(name: str, breaker: CircuitBreaker) -> list[Gauge]:
    """Return what is known of an upstream's state."""
    gauges = [
        Gauge("upstream_up", "0 if it failed since its last answer.", breaker.is_up, name),
        Gauge(
            "upstream_circuit_state",
            "0 closed, 1 the next request probes, 2 open: the registry gets no requests.",
            breaker.state.value,
            name,
        ),
    ]
    if (last := last_success(breaker)) is not None:
        text = "Time of the last answer, Unix seconds."
        gauges.append(Gauge("upstream_last_success_timestamp_seconds", text, last, name))
    return gauges
