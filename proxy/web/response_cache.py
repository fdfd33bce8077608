"""Response cache for repeated requests: a hit in memory without parsing HTTP.

A request is identified by its bytes. It is remembered when the general path has answered it twice,
with what the general path found out: route, target, log fields. Content is looked up and access is
asked on each request; only the header block of the last response is kept.

A request is remembered only if the same bytes always mean the same response. Left out are
conditional and range requests, cache directives, connections that close, and cookies; also
credentials while access does not identify clients. Where it does, who sends the bytes is asked each
time: the same token may have expired, or come from another network.
"""

import math
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import HttpVersion11

from proxy.access.control import AccessControl
from proxy.access.identity import Certificate
from proxy.access.limits import ClientLimits
from proxy.access.principals import Principal
from proxy.access.rules import Action, Decision
from proxy.core.names import Digest, Kind, Route, Target
from proxy.core.policy import CacheDirective
from proxy.core.records import Descriptor
from proxy.repository.memory_lookup import Found
from proxy.runtime.metrics import Outcome, UpstreamCounters
from proxy.web.audited import Remembered, remembered
from proxy.web.blob import blob_headers
from proxy.web.connection import Connection
from proxy.web.exchange import HIT_STATUS, Exchange, Journal, common_headers
from proxy.web.forwarded import TrustedProxies
from proxy.web.replies import manifest_headers

MAX_REQUESTS: Final = 4096
MAX_REQUEST_BYTES: Final = 2048
MAX_BODY: Final = 128 * 1024
"""Longer bodies are sent at the client's pace, so not in one step."""

_CONDITIONAL: Final = ("If-None-Match", "Range", "If-Range")
_CREDENTIALS: Final = ("Proxy-Authorization", "Cookie")
_STATUS_LINE: Final = f"Cache-Status: {HIT_STATUS}"


class Lookup(Protocol):
    """Looks up content in RAM, as ``MemoryLookup`` does."""

    def get(self, target: Target, route: Route) -> Found | None:
        """Return the content of a route and count its use; None if it is not in RAM."""


class Allowed(Protocol):
    """Knows which content violates no policy, as ``Policies`` does."""

    def is_allowed(self, target: Target, digest: Digest) -> bool:
        """Return True if content is known to violate nothing."""


class Confirmed(Protocol):
    """Knows which clients may be answered from the cache, as ``CallerGate`` does."""

    def is_confirmed(self, principal: Principal, target: Target) -> bool:
        """Return True if a client may be answered now."""


class ResponseCache:
    """Up to ``MAX_REQUESTS`` requests; at the limit the oldest is forgotten."""

    def __init__(
        self,
        lookup: Lookup,
        guards: tuple[AccessControl, ClientLimits, Allowed, Confirmed],
        journal: Journal,
        trusted: TrustedProxies,
    ) -> None:
        """``guards`` decide about requests, as ``Guards`` do."""
        self._lookup = lookup
        self._access, self._limits, self._policies, self._callers = guards
        self._journal = journal
        self._trusted = trusted
        self._seen_once: dict[int, None] = {}
        self._requests: dict[bytes, _Request] = {}
        self._second, self._date = -1, b""

    def learn(self, exchange: Exchange) -> None:
        """Remember a request that the general path has answered, from its second time on."""
        connection, route, target = exchange.request.protocol, exchange.route, exchange.target
        if not isinstance(connection, Connection) or (head := connection.head) is None:
            return
        if route is None or target is None or not _is_plain(exchange):
            return
        if len(head) > MAX_REQUEST_BYTES or head in self._requests:
            return
        authorization = exchange.request.headers.get("Authorization")
        if authorization is not None and not self._access.is_configured:
            return
        if (number := hash(head)) not in self._seen_once:
            _put(self._seen_once, number, None)
            return
        request = _Request(
            target,
            route,
            is_head=exchange.is_head,
            ns=exchange.ns,
            fields=exchange.fields(),
            counters=self._journal.metrics.of(target.upstream),
            named_client=self._trusted.named(exchange.request.headers),
            authorization=authorization,
            audited=remembered(exchange),
        )
        _put(self._requests, head, request)

    def forget(self) -> None:
        """Forget every request: its name may resolve to another target now."""
        self._requests.clear()

    def get(
        self, head: bytes, client: str | None, certificate: Certificate | None
    ) -> tuple[bytes, bytes] | None:
        """Return header block and body for a request's bytes, counted and logged.

        None: the general path must answer. ``client`` is the address of the peer.
        """
        request = self._requests.get(head)
        if request is None:
            return None
        started = time.perf_counter()
        if request.named_client is not None and self._trusted.trusts(client):
            client = request.named_client
        principal = self._access.recognise(request.authorization, client, certificate)
        if principal is None:
            return None
        decision = self._access.preview(principal, Action.PULL, request.target)
        if not decision.is_allowed:
            return None
        if not self._callers.is_confirmed(principal, request.target):
            return None
        found = self._lookup.get(request.target, request.route)
        if found is None or len(found.body) > MAX_BODY:
            return None
        if not self._policies.is_allowed(request.target, found.descriptor.digest):
            return None
        response = request.response(found, principal.user)
        if response is None:
            return None
        body = b"" if request.is_head else found.body
        if not self._admits(request, response, principal, decision, len(body)):
            return None
        self._journal.metrics.cache.prepared_answers += 1
        request.counters.answered(Outcome.HIT, len(body), manifest=request.is_pull)
        seconds = time.perf_counter() - started
        request.counters.timed(Outcome.HIT, seconds, seconds)
        self._journal.request_log.add(response.fields, seconds, client)
        return response.headers(found.fresh, self._end()), body

    def _admits(
        self,
        request: "_Request",
        response: "_Response",
        principal: Principal,
        decision: Decision,
        size: int,
    ) -> bool:
        """Count and audit a response, unless its client must wait for its turn."""
        audit, client = self._journal.audit, self._limits.client(principal)
        if audit.is_nearly_full or (client is not None and not client.try_request(size)):
            return False
        self._access.count(decision)
        if audit.is_on and request.audited is not None:
            digest = response.descriptor.digest
            audit.record(request.audited.hit(principal, decision, digest, size))
        return True

    def _end(self) -> bytes:
        """Return the current second's ``Date`` (RFC 9110 §6.6.1), and the end of the block."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode()
        return self._date


class _Response(NamedTuple):
    """The header block of one response in two parts, and its log fields.

    Between the parts goes the freshness, behind them the date. The body is not kept here: it would
    exceed the RAM set aside for content.
    """

    descriptor: Descriptor
    before: bytes
    after: bytes
    user: str | None
    fields: dict[str, Any]

    def headers(self, fresh: float | None, date: bytes) -> bytes:
        """Return the block; ``fresh`` is for how many more seconds a tag is fresh."""
        if fresh is None or not math.isfinite(fresh):
            return self.before + self.after + date
        return b"%b; ttl=%d%b%b" % (self.before, fresh, self.after, date)


@dataclass(slots=True)
class _Request:
    """A remembered request, and its last response."""

    target: Target
    route: Route
    is_head: bool
    ns: str | None
    fields: dict[str, Any]
    counters: UpstreamCounters
    named_client: str | None
    """The client that the headers name; counts only on connections of trusted proxies."""
    authorization: str | None
    audited: Remembered | None
    last: _Response | None = None

    @property
    def is_pull(self) -> bool:
        """Counts as a pull in rate limits."""
        return self.route.kind is Kind.MANIFEST and not self.is_head

    def response(self, found: Found, user: str | None) -> _Response | None:
        """Return the response for what was found, None if a header is not printable."""
        last = self.last
        if last is None or last.descriptor != found.descriptor or last.user != user:
            self.last = last = self._make(found, user)
        return last

    def _make(self, found: Found, user: str | None) -> _Response | None:
        descriptor = found.descriptor
        is_blob = self.route.kind is Kind.BLOB
        headers = common_headers(self.ns, HIT_STATUS)
        headers.update(blob_headers(descriptor.digest) if is_blob else manifest_headers(descriptor))
        headers["Content-Length"] = str(len(found.body))
        if not all(value.isprintable() for value in headers.values()):
            return None
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        before, status, after = f"HTTP/1.1 200 OK\r\n{lines}".partition(_STATUS_LINE)
        sent = 0 if self.is_head else len(found.body)
        fields = self.fields | {"outcome": Outcome.HIT.value, "bytes": sent, "user": user}
        return _Response(descriptor, (before + status).encode(), after.encode(), user, fields)


def _put(table: dict[Any, Any], key: object, value: object) -> None:
    if len(table) >= MAX_REQUESTS:
        del table[next(iter(table))]
    table[key] = value


def _is_plain(exchange: Exchange) -> bool:
    """Return True if the same bytes always get the same headers and the whole body."""
    request = exchange.request
    return (
        exchange.status == 200
        and exchange.outcome is not None
        and not exchange.left
        and request.version == HttpVersion11
        and request.keep_alive
        and exchange.directive is CacheDirective.ANY
        and not any(name in request.headers for name in (*_CONDITIONAL, *_CREDENTIALS))
    )
