"""One request and what becomes of it: counted once and logged in one line at its end."""

import math
import time
from typing import Any, Final, assert_never

from aiohttp.web import BaseRequest
from multidict import CIMultiDict

from proxy.core.errors import RegistryError
from proxy.core.names import Kind, Route, Target
from proxy.core.policy import CacheDirective, wish
from proxy.repository.results import Forward
from proxy.runtime.logs import RequestLog
from proxy.runtime.metrics import Metrics, Outcome

COMMON_HEADERS: Final = {"Docker-Distribution-Api-Version": "registry/2.0", "Server": "millpond"}
MAX_LOGGED: Final = 200
HIT_STATUS: Final = "Millpond; hit"


class Exchange:
    """What is learnt about a request on its way."""

    __slots__ = (
        "code",
        "failure",
        "first_byte",
        "forward",
        "fresh",
        "left",
        "ns",
        "outcome",
        "request",
        "route",
        "sent",
        "started",
        "status",
        "stores",
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
        self.forward: Forward | None = None
        self.failure: RegistryError | None = None
        self.stores = True
        """What upstream gave for this request is kept, if its outcome is a miss."""
        self.sent = 0
        self.first_byte: float | None = None
        """Seconds from the start to the first byte of the answer; None: all of it went at once."""
        self.left = False

    @property
    def wish(self) -> CacheDirective:
        """What the client wants of freshness."""
        return wish(self.request.headers.get("Cache-Control"))

    @property
    def is_head(self) -> bool:
        """Only headers are wanted."""
        return self.request.method == "HEAD"

    def headers(self, more: dict[str, str]) -> CIMultiDict[str]:
        """Return the headers that every answer has, and ``more``."""
        status = None if self.outcome is None else self._cache_status(self.outcome)
        headers = common_headers(self.ns if self.target is not None else None, status)
        headers.update(more)
        return headers

    def fail(self, error: RegistryError) -> None:
        """Note that the request ends in an error."""
        self.outcome, self.status, self.code = Outcome.ERROR, error.status, error.code
        self.failure = error

    def answered(self, outcome: Outcome, forward: Forward | None = None) -> None:
        """Note how the request is answered."""
        self.outcome, self.forward = outcome, forward
        self.failure = None if forward is None else forward.error

    def begin_body(self) -> None:
        """Note that the first byte of the answer is sent, and the rest follows."""
        self.first_byte = time.perf_counter() - self.started

    def leave(self) -> None:
        """Note that the client has left, perhaps before anything was known."""
        self.left = True
        if self.outcome is None and self.target is not None:
            self.outcome = Outcome.LEFT

    def account(self, metrics: Metrics, request_log: RequestLog) -> None:
        """Count and log; to be called once, at the end."""
        taken = time.perf_counter() - self.started
        if self.outcome is not None:
            counters = metrics.of(self.target.upstream if self.target else None)
            is_manifest = self.route is not None and self.route.kind is Kind.MANIFEST
            whole = is_manifest and self.status == 200 and not self.is_head
            counters.answered(self.outcome, self.sent, manifest=whole)
            if self.code is not None:
                counters.errors[self.code] += 1
            first_byte = taken if self.first_byte is None else self.first_byte
            counters.timed(self.outcome, first_byte, taken)
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

    def _cache_status(self, outcome: Outcome) -> str | None:
        """Return what the cache did, as ``Cache-Status`` (RFC 9211 §2)."""
        parts = ["Millpond", *self._handling(outcome)]
        if self.fresh is not None and math.isfinite(self.fresh):
            parts.append(f"ttl={int(self.fresh)}")
        match outcome:
            case Outcome.REVALIDATED:
                parts.append("detail=confirmed")
            case Outcome.STALE:
                parts.append(f"detail={self.failure.code if self.failure else 'stale'}")
            case Outcome.ERROR:
                parts.append(f"detail={self.code}")
        return "; ".join(parts)

    def _handling(self, outcome: Outcome) -> list[str]:
        """Return where the answer came from: the cache, or upstream and for which reason."""
        match outcome:
            case Outcome.HIT:
                return ["hit"]
            case Outcome.MISS:
                return [self._reason("uri-miss"), *(["stored"] if self.stores else [])]
            case Outcome.JOIN:
                return [self._reason("uri-miss"), "collapsed"]
            case Outcome.THROUGH if self.route is not None and self.route.kind is Kind.TAGS:
                return ["fwd=bypass"]
            case Outcome.THROUGH:
                return ["fwd=uri-miss", "stored=?0"]
            case Outcome.REVALIDATED if self.forward is None:  # held, but not yet under this name
                return ["fwd=uri-miss", "fwd-status=200"]
            case Outcome.REVALIDATED | Outcome.STALE:
                return self._checked()
            case Outcome.ERROR:
                return self._failed()
            case Outcome.LEFT:
                return []
            case _:
                assert_never(outcome)

    def _checked(self) -> list[str]:
        """Return what came of asking upstream about a held answer that was then sent."""
        forward = self.forward
        if forward is None or (forward.error is not None and not forward.error.was_forwarded):
            return ["hit"]
        return [self._reason("stale"), *_upstream_status(forward.status)]

    def _failed(self) -> list[str]:
        """Return whether an error is upstream's, one that it gave earlier, or ours."""
        error = self.failure
        if error is not None and error.is_remembered:
            return ["hit"]
        if error is None or not error.was_forwarded:
            return []
        return [self._reason("uri-miss"), *_upstream_status(error.upstream_status)]

    def _reason(self, otherwise: str) -> str:
        """Return why the request went to upstream.

        A held answer that is asked about although it may be fresh is the client's wish.
        """
        held = self.forward is not None
        if held and self.wish is CacheDirective.REVALIDATE:
            return "fwd=request"
        return "fwd=stale" if held else f"fwd={otherwise}"


def _upstream_status(status: int | None) -> list[str]:
    return [] if status is None else [f"fwd-status={status}"]


def common_headers(ns: str | None, status: str | None) -> CIMultiDict[str]:
    """Return the headers of every answer: with the name that was asked, and ``Cache-Status``."""
    headers = CIMultiDict(COMMON_HEADERS)
    if ns is not None:
        headers["OCI-Namespace"] = ns
    if status is not None:
        headers["Cache-Status"] = status
    return headers


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_LOGGED else text[:MAX_LOGGED] + "…"
