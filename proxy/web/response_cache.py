"""Answers that lie ready: for requests that were made before, of content that is at hand.

A request is known by its bytes, and learnt from the general way of answering it, which parsed,
routed and judged it. What it leads to is looked up each time; only the header block of what was
found last is kept, with gaps for what changes from one second to the next. Whatever is not plain
goes the general way: conditions, ranges, a wish about freshness, a connection that shall close.
So does whoever shows credentials: what bytes alone do not decide must not be answered here.
"""

import math
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any, Final

from aiohttp import HttpVersion11

from proxy.core.names import Kind, Route, Target
from proxy.core.policy import CacheDirective
from proxy.core.records import Descriptor
from proxy.repository.memory_lookup import Found, MemoryLookup
from proxy.runtime.logs import RequestLog
from proxy.runtime.metrics import Metrics, Outcome, UpstreamCounters
from proxy.web.blob import blob_headers
from proxy.web.connection import Connection
from proxy.web.exchange import HIT_STATUS, Exchange, common_headers
from proxy.web.forwarded import TrustedProxies
from proxy.web.replies import manifest_headers

MAX_KNOWN: Final = 4096
MAX_BYTES: Final = 2048
MAX_BODY: Final = 128 * 1024
"""Longer bodies are sent at the client's pace, which cannot be done at once."""

_SPECIAL: Final = ("If-None-Match", "Range", "If-Range")
_SECRET: Final = ("Authorization", "Proxy-Authorization", "Cookie")
_MARK: Final = f"Cache-Status: {HIT_STATUS}"


class ResponseCache:
    """Knows requests by their bytes: ``MAX_KNOWN`` of up to ``MAX_BYTES``, the oldest go first."""

    def __init__(
        self,
        at_hand: MemoryLookup,
        *,
        metrics: Metrics,
        request_log: RequestLog,
        trusted: TrustedProxies,
    ) -> None:
        self._trusted = trusted
        self._at_hand = at_hand
        self._metrics = metrics
        self._request_log = request_log
        self._known: dict[bytes, _Request] = {}
        self._date = _Date()

    def learn(self, exchange: Exchange) -> None:
        """Remember a request that was answered, if it is plain."""
        connection, route, target = exchange.request.protocol, exchange.route, exchange.target
        if not isinstance(connection, Connection) or connection.head is None:
            return
        if route is None or target is None or not _is_plain(exchange):
            return
        if len(connection.head) > MAX_BYTES or connection.head in self._known:
            return
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        counters = self._metrics.of(target.upstream)
        request = self._known[connection.head] = _Request(exchange, route, target, counters)
        request.named_client = self._trusted.named(exchange.request.headers)

    def forget(self) -> None:
        """Forget every request: names may lead elsewhere now."""
        self._known.clear()

    def answer(self, head: bytes, client: str | None) -> tuple[bytes, bytes] | None:
        """Return headers and body for a request's bytes; None when they do not lie ready."""
        request = self._known.get(head)
        if request is None:
            return None
        started = time.perf_counter()
        found = self._at_hand.get(request.target, request.route)
        if found is None or len(found.body) > MAX_BODY:
            return None
        block = request.block(found)
        if block is None:
            return None
        body = b"" if request.is_head else found.body
        self._metrics.cache.prepared_answers += 1
        request.counters.answered(Outcome.HIT, len(body), manifest=request.is_pull)
        seconds = time.perf_counter() - started
        request.counters.timed(Outcome.HIT, seconds, seconds)
        if request.named_client is not None and self._trusted.trusts(client):
            client = request.named_client
        self._request_log.add(block.fields, seconds, client)
        return block.headers(found.fresh, self._date.line()), body


class _Block:
    """The headers of one answer, and what the log says of it."""

    __slots__ = ("_after", "_before", "about", "fields")

    def __init__(self, headers: str, about: Descriptor, fields: Mapping[str, Any]) -> None:
        before, mark, after = headers.partition(_MARK)
        self._before = (before + mark).encode()
        self._after = after.encode()
        self.about = about  # not the body, which would outlive the RAM that is set for it
        self.fields = fields

    def headers(self, fresh: float | None, date: bytes) -> bytes:
        """Return the block, its gaps filled."""
        if fresh is None or not math.isfinite(fresh):
            return self._before + self._after + date
        return b"%b; ttl=%d%b%b" % (self._before, fresh, self._after, date)


class _Request:
    """What some bytes ask for, and the block that answered them last."""

    __slots__ = (
        "_block",
        "_fields",
        "_ns",
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
        """The client that the headers name, believed from trusted proxies only."""
        self.is_head = exchange.is_head
        self.is_pull = route.kind is Kind.MANIFEST and not self.is_head
        self._ns = exchange.ns
        self._fields = exchange.fields()
        self._block: _Block | None = None

    def block(self, found: Found) -> _Block | None:
        """Return the headers of what was found; None when they could not be sent."""
        if self._block is None or self._block.about != found.descriptor:
            self._block = self._made(found)
        return self._block

    def _made(self, found: Found) -> _Block | None:
        about = found.descriptor
        is_blob = self.route.kind is Kind.BLOB
        headers = common_headers(self._ns, HIT_STATUS)
        headers.update(blob_headers(about.digest) if is_blob else manifest_headers(about))
        headers["Content-Length"] = str(len(found.body))
        if not all(value.isprintable() for value in headers.values()):
            return None
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        sent = 0 if self.is_head else len(found.body)
        fields = self._fields | {"outcome": Outcome.HIT.value, "bytes": sent}
        return _Block(f"HTTP/1.1 200 OK\r\n{lines}", about, fields)


class _Date:
    """The ``Date`` of this second, with the end of a header block (RFC 9110 §6.6.1)."""

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


def _is_plain(exchange: Exchange) -> bool:
    """Tell whether the same bytes may be answered with the same headers and the whole body."""
    request = exchange.request
    return (
        exchange.status == 200
        and exchange.outcome is not None
        and not exchange.left
        and request.version == HttpVersion11
        and request.keep_alive
        and exchange.wish is CacheDirective.ANY
        and not any(name in request.headers for name in (*_SPECIAL, *_SECRET))
    )
