"""Response cache for repeated requests: a hit in memory without parsing HTTP.

A request is identified by its bytes. It is remembered when the general path has answered it twice,
with what the general path found out: route, target, log fields. Content is looked up and access is
asked on each request; only the header block of the last response is kept.

A request is remembered only if the same bytes always mean the same response. Left out are
conditional and range requests, cache directives, connections that close, and requests with
credentials: bytes cannot tell who is allowed what.
"""

import math
import time
from email.utils import formatdate
from typing import Any, Final

from aiohttp import HttpVersion11

from proxy.access import AccessRules, Action, Principal
from proxy.core.names import Kind, Route, Target
from proxy.core.policy import CacheDirective
from proxy.core.records import Descriptor
from proxy.repository.memory_lookup import Found, MemoryLookup
from proxy.runtime.metrics import Outcome, UpstreamCounters
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
_CREDENTIALS: Final = ("Authorization", "Proxy-Authorization", "Cookie")
_STATUS_LINE: Final = f"Cache-Status: {HIT_STATUS}"


class ResponseCache:
    """Up to ``MAX_REQUESTS`` requests; at the limit the oldest is forgotten."""

    def __init__(
        self, lookup: MemoryLookup, access: AccessRules, journal: Journal, trusted: TrustedProxies
    ) -> None:
        self._lookup = lookup
        self._access = access
        self._journal = journal
        self._trusted = trusted
        self._seen_once: dict[int, None] = {}
        self._requests: dict[bytes, _Request] = {}
        self._date = _Date()

    def learn(self, exchange: Exchange) -> None:
        """Remember a request that the general path has answered, from its second time on."""
        connection, route, target = exchange.request.protocol, exchange.route, exchange.target
        if not isinstance(connection, Connection) or (head := connection.head) is None:
            return
        if route is None or target is None or not _is_plain(exchange):
            return
        if len(head) > MAX_REQUEST_BYTES or head in self._requests:
            return
        if (number := hash(head)) not in self._seen_once:
            _put(self._seen_once, number, None)
            return
        counters = self._journal.metrics.of(target.upstream)
        request = _Request(exchange, route, target, counters)
        request.named_client = self._trusted.named(exchange.request.headers)
        _put(self._requests, head, request)

    def forget(self) -> None:
        """Forget every request: its name may resolve to another target now."""
        self._requests.clear()

    def get(self, head: bytes, client: str | None) -> tuple[bytes, bytes] | None:
        """Return header block and body for a request's bytes, counted and logged.

        None: the general path must answer. ``client`` is the address of the peer.
        """
        request = self._requests.get(head)
        if request is None:
            return None
        started = time.perf_counter()
        if request.named_client is not None and self._trusted.trusts(client):
            client = request.named_client
        if self._access.allow(Principal(client), Action.PULL, request.target).refusal is not None:
            return None
        found = self._lookup.get(request.target, request.route)
        if found is None or len(found.body) > MAX_BODY:
            return None
        response = request.response(found)
        if response is None:
            return None
        body = b"" if request.is_head else found.body
        self._journal.metrics.cache.prepared_answers += 1
        request.counters.answered(Outcome.HIT, len(body), manifest=request.is_pull)
        seconds = time.perf_counter() - started
        request.counters.timed(Outcome.HIT, seconds, seconds)
        self._journal.request_log.add(response.fields, seconds, client)
        return response.headers(found.fresh, self._date.line()), body


class _Response:
    """The header block of one response, and its log fields."""

    __slots__ = ("_after", "_before", "descriptor", "fields")

    def __init__(self, headers: str, descriptor: Descriptor, fields: dict[str, Any]) -> None:
        before, status, after = headers.partition(_STATUS_LINE)
        self._before = (before + status).encode()
        self._after = after.encode()
        self.descriptor = descriptor  # not the body, which would exceed the RAM set aside for it
        self.fields = fields

    def headers(self, fresh: float | None, date: bytes) -> bytes:
        """Return the block with the remaining freshness in seconds, and the date."""
        if fresh is None or not math.isfinite(fresh):
            return self._before + self._after + date
        return b"%b; ttl=%d%b%b" % (self._before, fresh, self._after, date)


class _Request:
    """A remembered request, and its last response."""

    __slots__ = (
        "_fields",
        "_ns",
        "_response",
        "counters",
        "is_head",
        "is_pull",
        "named_client",
        "route",
        "target",
    )

    def __init__(
        self, exchange: Exchange, route: Route, target: Target, counters: UpstreamCounters
    ) -> None:
        self.route = route
        self.target = target
        self.counters = counters
        self.named_client: str | None = None
        """The client that the headers name; counts only on connections of trusted proxies."""
        self.is_head = exchange.is_head
        self.is_pull = route.kind is Kind.MANIFEST and not self.is_head
        self._ns = exchange.ns
        self._fields = exchange.fields()
        self._response: _Response | None = None

    def response(self, found: Found) -> _Response | None:
        """Return the response for what was found, None if a header is not printable."""
        if self._response is None or self._response.descriptor != found.descriptor:
            self._response = self._make(found)
        return self._response

    def _make(self, found: Found) -> _Response | None:
        descriptor = found.descriptor
        is_blob = self.route.kind is Kind.BLOB
        headers = common_headers(self._ns, HIT_STATUS)
        headers.update(blob_headers(descriptor.digest) if is_blob else manifest_headers(descriptor))
        headers["Content-Length"] = str(len(found.body))
        if not all(value.isprintable() for value in headers.values()):
            return None
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        sent = 0 if self.is_head else len(found.body)
        fields = self._fields | {"outcome": Outcome.HIT.value, "bytes": sent}
        return _Response(f"HTTP/1.1 200 OK\r\n{lines}", descriptor, fields)


class _Date:
    """The ``Date`` header of the current second, and the end of the block (RFC 9110 §6.6.1)."""

    __slots__ = ("_line", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def line(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode()
        return self._line


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
        and exchange.wish is CacheDirective.ANY
        and not any(name in request.headers for name in (*_CONDITIONAL, *_CREDENTIALS))
    )
