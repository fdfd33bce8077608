"""One request and its outcome, and the journal that counts, logs and audits it when it ends."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, assert_never

from aiohttp.web import BaseRequest
from multidict import CIMultiDict

from proxy.access.audit import AuditLog, Verdict, request_line_fields
from proxy.access.limits import Client
from proxy.access.principals import Principal
from proxy.access.rules import Decision
from proxy.core.cool_down import show_time
from proxy.core.errors import HeldBack, PolicyDenied, RegistryError
from proxy.core.names import Digest, Kind, Route, Target
from proxy.core.policy import CacheDirective, cache_directive
from proxy.core.sources import Place
from proxy.repository.results import Forward
from proxy.runtime import request_ids
from proxy.runtime.logs import RequestLog
from proxy.runtime.metrics import Metrics, Outcome
from proxy.runtime.spans import NoTracer, Tracer
from proxy.upstream.registry import Upstream
from proxy.web import audit_events
from proxy.web.announcer import Announcer

COMMON_HEADERS: Final = {"Docker-Distribution-Api-Version": "registry/2.0", "Server": "millpond"}
MAX_LOGGED: Final = 200
HIT_STATUS: Final = "Millpond; hit"
_FETCHED: Final = (Outcome.MISS, Outcome.JOIN, Outcome.THROUGH)
_SERVED_STALE: Final = {
    Kind.MANIFEST: "the last good copy",
    Kind.TAGS: "the last list of tags",
    Kind.REFERRERS: "the last list of referrers",
}


@dataclass(slots=True, eq=False)
class Exchange:
    """The facts about a request while it is answered."""

    request: BaseRequest
    started: float = field(default_factory=time.perf_counter)
    ns: str | None = field(init=False)
    request_id: str = field(init=False)
    route: Route | None = None
    target: Target | None = None
    client: Client | None = None
    """The client's limits; None: there are none."""
    counted: Client | None = None
    """The client's entry in the statistics; None on the admin socket."""
    digest: Digest | None = None
    """The digest of the manifest that was sent."""
    principal: Principal | None = None
    """None: not identified yet, or identification failed."""
    decision: Decision | None = None
    """The last decision of access, which names the rule."""
    outcome: Outcome | None = None
    place: Place = Place.REGISTRY
    """The source of content that was not in the cache."""
    status: int = 200
    code: str | None = None
    fresh: float | None = None
    is_offline: bool = False
    """Upstream must not be asked."""
    held_until: float | None = None
    """Time until which a younger image of the tag is held (Unix seconds)."""
    forward: Forward | None = None
    failure: RegistryError | None = None
    policy: str | None = None
    """The policy that denies the request, or would deny it without ``audit: true``."""
    stores: bool = True
    """If the outcome is a miss: upstream's response is stored."""
    sent: int = 0
    first_byte: float | None = None
    """Seconds from the start to the first byte of the body; None: it was sent in one step."""
    left: bool = False

    def __post_init__(self) -> None:
        self.ns = self.request.query.get("ns") or None
        sent = self.request.headers.get(request_ids.HEADER)
        self.request_id = request_ids.accepted(sent) or request_ids.make()

    @property
    def directive(self) -> CacheDirective:
        """The request's ``Cache-Control``, as far as it is supported."""
        return cache_directive(self.request.headers.get("Cache-Control"))

    @property
    def denial(self) -> Decision | None:
        """The decision that refused the request."""
        return None if self.decision is None or self.decision.is_allowed else self.decision

    @property
    def is_head(self) -> bool:
        """The method is HEAD."""
        return self.request.method == "HEAD"

    @property
    def is_pull(self) -> bool:
        """The client got a manifest by GET, which registries count as a pull."""
        route = self.route
        is_manifest = route is not None and route.kind is Kind.MANIFEST
        return is_manifest and self.status == 200 and not self.is_head

    def headers(self, more: dict[str, str]) -> CIMultiDict[str]:
        """Return the headers of every response, and ``more``."""
        status = None if self.outcome is None else self._cache_status(self.outcome)
        headers = common_headers(self.ns if self.target is not None else None, status)
        headers[request_ids.HEADER] = self.request_id
        headers.update(more)
        return headers

    def fail(self, error: RegistryError) -> None:
        """Record that the request ends in an error."""
        self.outcome, self.status, self.code = Outcome.ERROR, error.status, error.code
        self.failure = error
        if isinstance(error, PolicyDenied):
            self.policy = error.policy
        if isinstance(error, HeldBack):
            self.held_until = error.until

    def answered(self, outcome: Outcome, forward: Forward | None = None) -> None:
        """Record the outcome; ``forward`` if upstream was asked about a stored answer."""
        self.outcome, self.forward = outcome, forward
        self.failure = None if forward is None else forward.error

    def begin_body(self) -> None:
        """Record that the first byte of the body is sent."""
        self.first_byte = self.seconds

    def leave(self) -> None:
        """Record that the client disconnected."""
        self.left = True
        if self.outcome is None and self.target is not None:
            self.outcome = Outcome.LEFT

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.started

    def fields(self) -> dict[str, Any]:
        """Return the log fields, without duration and client."""
        route, request = self.route, self.request
        known = route is not None and route.kind is not Kind.BASE
        return {
            "method": request.method,
            "path": None if known else _cut(request.path),
            "kind": route.kind.name.lower() if route is not None and known else None,
            "upstream": self.target.upstream if self.target else None,
            "repository": self.target.repo if self.target else None,
            "reference": (route.ref or None) if route else None,
            "status": self.status,
            "outcome": self.outcome.value if self.outcome else None,
            "error": self.code,
            "client_left": self.left or None,
            "bytes": self.sent,
            "user": _cut(self.principal.user) if self.principal else None,
            "policy": self.policy,
            "held_until": None if self.held_until is None else show_time(self.held_until),
            "rule": audit_events.rule_text(self.denial) if self.denial else None,
            "agent": _cut(request.headers.get("User-Agent")),
        }

    def _cache_status(self, outcome: Outcome) -> str:
        """Return the value of ``Cache-Status`` (RFC 9211 §2)."""
        parts = ["Millpond", self._handling(outcome)]
        if self.fresh is not None and math.isfinite(self.fresh):
            parts.append(f"ttl={int(self.fresh)}")
        parts.append(_detail(list(filter(None, self._details(outcome)))))
        return "; ".join(filter(None, parts))

    def _details(self, outcome: Outcome) -> Iterator[str | None]:
        """Yield the details that have no standard parameter."""
        if outcome is Outcome.REVALIDATED:
            yield "confirmed"
        elif outcome is Outcome.STALE:
            yield self.failure.code if self.failure else "stale"
        elif outcome is Outcome.ERROR:
            yield self.code
        elif outcome in _FETCHED and self.place in (Place.PEER, Place.BUCKET):
            yield self.place
        if self.is_offline:
            yield "offline"
        if self.held_until is not None:
            yield f"held until {show_time(self.held_until)}"

    def _handling(self, outcome: Outcome) -> str:
        """Return the parameters for an answer from the cache, or from upstream with the reason."""
        match outcome:
            case Outcome.HIT:
                return "hit"
            case Outcome.MISS:
                return f"{self._forwarded()}; stored" if self.stores else self._forwarded()
            case Outcome.JOIN:
                return f"{self._forwarded()}; collapsed"
            case Outcome.THROUGH:
                is_list = self.route is not None and self.route.kind is Kind.TAGS
                return "fwd=bypass" if is_list else "fwd=uri-miss; stored=?0"
            case Outcome.REVALIDATED | Outcome.STALE:
                return self._checked(outcome)
            case Outcome.ERROR:
                return self._failed()
            case Outcome.LEFT:
                return ""
            case _:
                assert_never(outcome)

    def _checked(self, outcome: Outcome) -> str:
        """Return the parameters for a stored answer that was sent."""
        if self.forward is None:  # REVALIDATED: upstream confirmed it for this repository
            return "hit" if outcome is Outcome.STALE else "fwd=uri-miss; fwd-status=200"
        error = self.forward.error
        if error is not None and not error.was_forwarded:
            return "hit"
        return self._forwarded(self.forward.status)

    def _failed(self) -> str:
        """Return the parameters for an error: a remembered one, one of upstream, or one of ours."""
        if (error := self.failure) is None:
            return ""
        if error.is_cached:
            return "hit"
        return self._forwarded(error.upstream_status) if error.was_forwarded else ""

    def _forwarded(self, status: int | None = None) -> str:
        """Return why upstream was asked, and the status of its response if it gave one."""
        reason = "uri-miss" if self.forward is None else "stale"
        if self.forward is not None and self.directive is CacheDirective.REVALIDATE:
            reason = "request"
        return f"fwd={reason}" if status is None else f"fwd={reason}; fwd-status={status}"


class Watchers(NamedTuple):
    """The observers of each request besides the logs: events, and spans."""

    announcer: Announcer
    tracer: Tracer = NoTracer()


class RequestRecorder:
    """Counts, logs and announces each request once, and logs failures of upstreams."""

    def __init__(
        self,
        metrics: Metrics,
        request_log: RequestLog,
        audit: AuditLog,
        upstreams: Mapping[str, Upstream],
        watchers: Watchers,
    ) -> None:
        self.metrics = metrics
        self.request_log = request_log
        self.audit = audit
        self.announcer, self.tracer = watchers
        self._upstreams = upstreams

    def record(self, exchange: Exchange) -> None:
        """Record a request that has ended."""
        target, outcome, seconds = exchange.target, exchange.outcome, exchange.seconds
        if outcome is not None:
            counters = self.metrics.of(target.upstream if target else None)
            counters.answered(outcome, exchange.sent, manifest=exchange.is_pull)
            self._tally(exchange, is_pull=exchange.is_pull)
            if outcome in _FETCHED:
                counters.fetched(exchange.place, exchange.sent)
            if exchange.code is not None:
                counters.errors[exchange.code] += 1
            first_byte = seconds if exchange.first_byte is None else exchange.first_byte
            counters.timed(outcome, first_byte, seconds)
        self._log(exchange, seconds)
        self.announcer.ended(exchange)
        if exchange.counted is not None:
            exchange.counted.sent += exchange.sent
        if exchange.failure is not None and target is not None:
            upstream = self._upstreams.get(target.upstream)
            if upstream is not None:  # a reload may have removed it
                upstream.failures.report(exchange.failure, _served(exchange))

    def _tally(self, exchange: Exchange, *, is_pull: bool) -> None:
        """Count the bytes and pulls of an image."""
        route, target = exchange.route, exchange.target
        if route is None or target is None:
            return
        if is_pull:
            self.metrics.tally.add((target, route.ref), 1)
        elif route.kind is Kind.BLOB and exchange.sent and exchange.code is None:
            self.metrics.tally.add((target, ""), exchange.sent)

    @property
    def audits_in_request_lines(self) -> bool:
        """Request lines record allowed pulls: both go to the same log, and no line is dropped."""
        return not self.audit.has_file and self.request_log.is_complete

    def _log(self, exchange: Exchange, seconds: float) -> None:
        fields = exchange.fields()
        event = audit_events.of_request(exchange) if self.audit.is_on else None
        if event is not None:
            if event.outcome is Verdict.ALLOWED and self.audits_in_request_lines:
                fields |= request_line_fields(event)
            else:
                self.audit.record(event)
        client = exchange.request.remote
        self.request_log.add(fields, seconds, client, exchange.request_id)


def _served(exchange: Exchange) -> str:
    """Return the answer that the client got instead of upstream's."""
    if exchange.outcome is Outcome.STALE and exchange.route is not None:
        return _SERVED_STALE.get(exchange.route.kind, "a stored copy")
    if exchange.first_byte is not None:
        return "a truncated body"
    return f"an error: {exchange.status} {exchange.code}"


def common_headers(ns: str | None, status: str | None) -> CIMultiDict[str]:
    """Return the headers of all responses but the id; ``ns`` is that of the request."""
    headers = CIMultiDict(COMMON_HEADERS)
    if ns is not None:
        headers["OCI-Namespace"] = ns
    if status is not None:
        headers["Cache-Status"] = status
    return headers


def _detail(texts: list[str]) -> str:
    """Return the parameter ``detail``: a token if there is one word, else a string (RFC 8941)."""
    text = ", ".join(texts)
    return f"detail={text}" if len(texts) == 1 and " " not in text else text and f'detail="{text}"'


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_LOGGED else text[:MAX_LOGGED] + "…"
