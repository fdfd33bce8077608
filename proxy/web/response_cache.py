"""Response cache for repeated requests: a hit in memory without parsing HTTP.

A request is identified by its bytes, or by a keyed hash of them if they contain credentials. It is
cached when the general path has answered it twice, with the facts that the general path found:
route, target, log fields. Each request checks access and looks up the content; only the header
block of the last response is stored.

A request is cached only if equal bytes always mean the same response. Excluded are conditional and
range requests, cache directives, connections that close, and cookies; also credentials while access
does not identify clients. Otherwise the sender is identified each time: a token may have expired,
or come from another network.
"""

import hashlib
import math
import secrets
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import HttpVersion11

from proxy.access.audit import Recurrence, Recurring, carried
from proxy.access.control import AccessControl
from proxy.access.identity import Certificate
from proxy.access.limits import ClientLimits
from proxy.access.principals import Principal
from proxy.access.rules import Action, Decision
from proxy.core.names import Digest, Kind, Route, Target
from proxy.core.policy import CacheDirective
from proxy.core.records import Descriptor
from proxy.repository.memory_lookup import Found
from proxy.runtime import request_ids
from proxy.runtime.metrics import Outcome, UpstreamCounters
from proxy.runtime.tally import Key
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

_AUTHORIZATION: Final = b"uthorization: "
"""Part of every cached request with credentials, with a small or a capital A."""

_CONDITIONAL: Final = ("If-None-Match", "Range", "If-Range")
_CREDENTIALS: Final = ("Proxy-Authorization", "Cookie")
_STATUS_LINE: Final = f"Cache-Status: {HIT_STATUS}"


class Lookup(Protocol):
    """Looks up content in RAM, as ``MemoryLookup`` does."""

    def get(self, target: Target, route: Route) -> Found | None:
        """Return the content of a route and count its use; None if it is not in RAM."""


class Allowed(Protocol):
    """Decides which content violates no policy, as ``Policies`` does."""

    def is_allowed(self, target: Target, digest: Digest) -> bool:
        """Return True if content is known to violate nothing."""


class Confirmed(Protocol):
    """Decides which clients may get cached content, as ``CallerGate`` does."""

    def is_needed(self, target: Target) -> bool:
        """Return True if the repository's upstream has ``credentials: caller``."""

    def is_confirmed(self, principal: Principal, target: Target) -> bool:
        """Return True if a client may be answered now."""


class ResponseCache:
    """Up to ``MAX_REQUESTS`` requests; at the limit the oldest is dropped."""

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
        self._hash = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=32)
        self._seen_once: dict[int, None] = {}
        self._requests: dict[bytes, _Request] = {}
        self._second, self._date = -1, b""

    def learn(self, exchange: Exchange) -> None:
        """Cache a request that the general path has answered for the second time."""
        connection, route, target = exchange.request.protocol, exchange.route, exchange.target
        if not isinstance(connection, Connection) or (head := connection.head) is None:
            return
        connection.head = None  # it may contain credentials, and the connection may stay open
        if route is None or target is None or not _is_plain(exchange):
            return
        if len(head) > MAX_REQUEST_BYTES or (key := self._key(head)) in self._requests:
            return
        authorization = exchange.request.headers.get("Authorization")
        if authorization is not None and (not self._access.is_configured or key is head):
            return
        if (number := hash(key)) not in self._seen_once:
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
            is_callers=self._callers.is_needed(target),
            credential=self._access.sealed(authorization),
            audited=remembered(exchange),
            tallied=(target, "" if exchange.is_head or route.kind is Kind.BLOB else route.ref),
            request_id=request_ids.accepted(exchange.request.headers.get(request_ids.HEADER)),
        )
        _put(self._requests, key, request)

    def forget(self) -> None:
        """Drop every request: its name may resolve to another target now."""
        self._requests.clear()

    def get(
        self, head: bytes, client: str | None, certificate: Certificate | None
    ) -> tuple[bytes, bytes] | None:
        """Return header block and body for a request's bytes, counted and logged.

        None: the general path must answer. ``client`` is the address of the peer.
        """
        request = self._requests.get(self._key(head))
        if request is None:
            return None
        started = time.perf_counter()
        if request.named_client is not None and self._trusted.trusts(client):
            client = request.named_client
        principal = self._access.recognise(request.credential, client, certificate)
        if principal is None:
            return None
        decision = self._access.preview(principal, Action.PULL, request.target)
        found = self._found(request, principal) if decision.is_allowed else None
        if found is None:
            return None
        response = request.response(found, principal, decision)
        if response is None:
            return None
        body = b"" if request.is_head else found.body
        if not self._admits(principal, len(body)):
            return None
        self._access.count(decision)
        self._journal.metrics.cache.prepared_answers += 1
        request.counters.answered(Outcome.HIT, len(body), manifest=request.is_pull)
        self._journal.metrics.tally.counts[request.tallied] += 1 if request.is_pull else len(body)
        seconds = time.perf_counter() - started
        request.counters.timed(Outcome.HIT, seconds, seconds)
        request_id = request.request_id or request_ids.make()
        self._log(response, principal, seconds, request_id)
        if request.audited is not None and self._journal.announcer.announces_pulls:
            digest = found.descriptor.digest
            self._journal.announcer.repeated(request.audited, principal, digest, len(body))
        return response.headers(found.fresh, self._end(request_id)), body

    def _found(self, request: "_Request", principal: Principal) -> Found | None:
        """Return the content of a request, None if it may not be sent, or not in one step."""
        target = request.target
        if request.is_callers and not self._callers.is_confirmed(principal, target):
            return None
        found = self._lookup.get(target, request.route)
        if found is None or len(found.body) > MAX_BODY:
            return None
        return found if self._policies.is_allowed(target, found.descriptor.digest) else None

    def _key(self, head: bytes) -> bytes:
        """Return the key of a request, without passwords and tokens."""
        if _AUTHORIZATION not in head:
            return head
        state = self._hash.copy()
        state.update(head)
        return state.digest()

    def _admits(self, principal: Principal, size: int) -> bool:
        """Count a response for its client, unless that must wait for its turn."""
        client = self._limits.counted(principal)
        if self._journal.audit.is_nearly_full:
            return False
        return client is None or client.try_request(size)

    def _log(
        self, response: "_Response", principal: Principal, seconds: float, request_id: str
    ) -> None:
        """Log and audit a response, in one line if possible."""
        journal, fields, audited = self._journal, response.fields, response.audited
        if audited is not None and journal.audit.is_on:
            if journal.audits_in_request_lines:
                fields = response.audited_fields
            else:
                journal.audit.record(Recurrence(audited, time.time(), principal.address))
        journal.request_log.add(fields, seconds, principal.address, request_id)

    def _end(self, request_id: str) -> bytes:
        """Return the id, the second's ``Date`` (RFC 9110 §6.6.1), and the end of the block."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode()
        return b"X-Request-Id: %b\r\n%b" % (request_id.encode(), self._date)


class _Response(NamedTuple):
    """The header block of one response in two parts, its log fields, and its inputs.

    The freshness is inserted between the parts, the id and the date after them. The body is not
    stored here: it would exceed the RAM that is reserved for content.
    """

    descriptor: Descriptor
    principal: Principal
    decision: Decision
    before: bytes
    after: bytes
    fields: dict[str, Any]
    audited: Recurring | None
    """The event for the audit log; None: the request is not for a manifest."""
    audited_fields: dict[str, Any]
    """The fields of a request line that is its audit line too."""

    def is_for(self, descriptor: Descriptor, principal: Principal, decision: Decision) -> bool:
        """Return True if everything is equal, except possibly the client's address."""
        if self.descriptor is not descriptor and self.descriptor != descriptor:
            return False
        is_same = self.principal is principal or _proof(self.principal) == _proof(principal)
        return is_same and self.decision == decision

    def headers(self, fresh: float | None, end: bytes) -> bytes:
        """Return the block; ``fresh`` is for how many more seconds a tag is fresh."""
        if fresh is None or not math.isfinite(fresh):
            return self.before + self.after + end
        return b"%b; ttl=%d%b%b" % (self.before, fresh, self.after, end)


@dataclass(slots=True)
class _Request:
    """A cached request, and its last response."""

    target: Target
    route: Route
    is_head: bool
    ns: str | None
    fields: dict[str, Any]
    counters: UpstreamCounters
    named_client: str | None
    """The client that the headers name; counts only on connections of trusted proxies."""
    is_callers: bool
    """Its upstream has ``credentials: caller``, and has to confirm each client."""
    credential: bytes | None
    """A keyed hash of ``Authorization``."""
    audited: Remembered | None
    tallied: Key
    """The counters of its image."""
    request_id: str | None
    """That the client sent; None: each response has a new one."""
    last: _Response | None = None

    @property
    def is_pull(self) -> bool:
        """Counts as a pull in rate limits."""
        return self.route.kind is Kind.MANIFEST and not self.is_head

    def response(self, found: Found, principal: Principal, decision: Decision) -> _Response | None:
        """Return the response for the found content, None if a header is not printable."""
        last = self.last
        if last is None or not last.is_for(found.descriptor, principal, decision):
            self.last = last = self._make(found, principal, decision)
        return last

    def _make(self, found: Found, principal: Principal, decision: Decision) -> _Response | None:
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
        own = {"outcome": Outcome.HIT.value, "bytes": sent, "user": principal.user}
        fields = audited_fields = self.fields | own
        event = None
        if self.audited is not None:
            event = self.audited.hit(principal, decision, descriptor.digest, sent)
            audited_fields = fields | carried(event)
        return _Response(
            descriptor,
            principal,
            decision,
            (before + status).encode(),
            after.encode(),
            fields,
            None if event is None else Recurring(event),
            audited_fields,
        )


def _proof(principal: Principal) -> tuple[object, ...]:
    """Return the log fields about a client, without its address."""
    return principal.user, principal.method, principal.credential_id


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
