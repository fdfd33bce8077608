"""One request and what becomes of it: counted once and logged in one line at its end."""

import math
import time
from typing import Any, Final

from aiohttp.web import BaseRequest
from multidict import CIMultiDict

from proxy.errors import RegistryError
from proxy.logs import RequestLog
from proxy.metrics import Metrics, Outcome
from proxy.names import Kind, Route, Target
from proxy.policy import Wish, wish

COMMON_HEADERS: Final = {"Docker-Distribution-Api-Version": "registry/2.0", "Server": "millpond"}
MAX_LOGGED: Final = 200
_CACHE_STATUS: Final = {
    Outcome.HIT: ("hit",),
    Outcome.REVALIDATED: ("fwd=stale", "detail=confirmed"),
    Outcome.STALE: ("hit", "detail=stale"),
    Outcome.JOIN: ("fwd=miss", "collapsed"),
    Outcome.MISS: ("fwd=miss", "stored"),
    Outcome.THROUGH: ("fwd=bypass",),
    Outcome.ERROR: (),
    Outcome.LEFT: (),
}


class Exchange:
    """What is learnt about a request on its way."""

    __slots__ = (
        "code",
        "fresh",
        "left",
        "ns",
        "outcome",
        "request",
        "route",
        "sent",
        "started",
        "status",
        "target",
    )

    def __init__(self, request: BaseRequest) -> None:
        self.request = request
        self.started = time.perf_counter()
        self.ns: str | None = request.query.get("ns") or None
        self.route: Route | None = None
        self.target: Target | None = None
        self.outcome: Outcome | None = None
        self.status = 200
        self.code: str | None = None
        self.fresh: float | None = None
        self.sent = 0
        self.left = False

    @property
    def wish(self) -> Wish:
        """What the client wants of freshness."""
        return wish(self.request.headers.get("Cache-Control"))

    @property
    def is_head(self) -> bool:
        """Only headers are wanted."""
        return self.request.method == "HEAD"

    def headers(self, more: dict[str, str]) -> CIMultiDict[str]:
        """Return the headers that every answer has, and ``more``."""
        status = self.outcome and cache_status(self.outcome, self.fresh, self.code)
        headers = common_headers(self.ns if self.target is not None else None, status)
        headers.update(more)
        return headers

    def fail(self, error: RegistryError) -> None:
        """Note that the request ends in an error."""
        self.outcome, self.status, self.code = Outcome.ERROR, error.status, error.code

    def leave(self) -> None:
        """Note that the client has left, perhaps before anything was known."""
        self.left = True
        if self.outcome is None and self.target is not None:
            self.outcome = Outcome.LEFT

    def account(self, metrics: Metrics, request_log: RequestLog) -> None:
        """Count and log; to be called once, at the end."""
        if self.outcome is not None:
            counters = metrics.of(self.target.upstream if self.target else None)
            is_manifest = self.route is not None and self.route.kind is Kind.MANIFEST
            whole = is_manifest and self.status == 200 and not self.is_head
            counters.answered(self.outcome, self.sent, manifest=whole)
            if self.code is not None:
                counters.errors[self.code] += 1
        taken = time.perf_counter() - self.started
        request_log.add(self.fields(), taken, self.request.remote)

    def fields(self) -> dict[str, Any]:
        """Return what the log says of the request, but for its time and its client."""
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
            "agent": _cut(request.headers.get("User-Agent")),
        }


def common_headers(ns: str | None, status: str | None) -> CIMultiDict[str]:
    """Return the headers of every answer: with the name that was asked, and ``Cache-Status``."""
    headers = CIMultiDict(COMMON_HEADERS)
    if ns is not None:
        headers["OCI-Namespace"] = ns
    if status is not None:
        headers["Cache-Status"] = status
    return headers


def cache_status(outcome: Outcome, fresh: float | None, code: str | None = None) -> str:
    """Return what the cache did, for anyone with curl (RFC 9211)."""
    parts = ["Millpond", *_CACHE_STATUS[outcome]]
    if fresh is not None and math.isfinite(fresh):
        parts.append(f"ttl={int(fresh)}")
    if outcome is Outcome.ERROR:
        parts.append(f"detail={code}")
    return "; ".join(parts)


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_LOGGED else text[:MAX_LOGGED] + "…"
