"""Response cache for repeated requests: a hit in memory without parsing HTTP.

A request is identified by its bytes, or by a keyed hash of them if they contain credentials. It is
cached when the general path has answered it twice, with the facts that the general path found:
route, target, log fields. Each request checks access and looks up the content; only the header
block of the last response is stored.

Of requests for manifests, method and headers are cached too. A request that differs only in its
path is answered here, the first time too, if its content is found without waiting: only route and
target differ.

A request is cached only if equal bytes always mean the same response. Excluded are conditional and
range requests, cache directives, connections that close, and cookies; also credentials while access
does not identify clients. Otherwise the sender is identified each time: a token may have expired,
or come from another network.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final, Protocol

from aiohttp import HttpVersion11

from proxy.access.audit import Recurrence
from proxy.access.control import AccessControl
from proxy.access.identity import Certificate
from proxy.access.limits import ClientLimits
from proxy.access.principals import Principal
from proxy.access.rules import Action
from proxy.core.errors import RegistryError
from proxy.core.names import Digest, Kind, Repo, Route, Target, parse_path
from proxy.core.policy import CacheDirective
from proxy.repository.memory_lookup import Found
from proxy.runtime import request_ids
from proxy.runtime.metrics import Outcome
from proxy.web.cached_requests import Form, Request, Response
from proxy.web.connection import Connection
from proxy.web.exchange import Exchange, RequestRecorder
from proxy.web.forwarded import TrustedProxies

MAX_REQUESTS: Final = 4096
MAX_REQUEST_BYTES: Final = 2048
MAX_BODY: Final = 128 * 1024
"""Longer bodies are sent at the client's pace, so not in one step."""

_AUTHORIZATION: Final = b"uthorization: "
"""Part of every cached request with credentials, with a small or a capital A."""

_CONDITIONAL: Final = ("If-None-Match", "Range", "If-Range")
_CREDENTIALS: Final = ("Proxy-Authorization", "Cookie")


_PATH: Final = re.compile(rb"(?:GET|HEAD) (/v2/[\w./:-]+)(?:\?ns=([\w.:-]+))? HTTP/1\.1\r\n")
"""Paths that contain nothing to decode."""

Resolve = Callable[[Repo, str, str | None], Target]
"""Returns what a repository means, by ``Host`` and ``ns``, as ``Router.resolve`` does."""


class Lookup(Protocol):
    """Looks up content without waiting, as ``MemoryLookup`` does."""

    def get(self, target: Target, route: Route) -> Found | None:
        """Return the content of a route and count its use; None if that needs waiting."""


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
        recorder: RequestRecorder,
        trusted: TrustedProxies,
        resolve: Resolve,
    ) -> None:
        """``guards`` decide about requests, as ``Guards`` do."""
        self._lookup = lookup
        self._access, self._limits, self._policies, self._callers = guards
        self._recorder = recorder
        self._trusted = trusted
        self._resolve = resolve
        self._hash = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=32)
        self._seen_once: dict[int, None] = {}
        self._requests: dict[bytes, Request] = {}
        self._forms: dict[bytes, Form] = {}
        """By what ``_without_path`` returns."""
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
        form_key = self._key(_without_path(head)) if route.kind is Kind.MANIFEST else key
        form = self._forms.get(form_key)
        if form is None and self._came_before(form_key):
            form = self._form(exchange)
            if route.kind is Kind.MANIFEST:
                _put(self._forms, form_key, form)
        if form is not None and (form_key is key or self._came_before(key)):
            _put(self._requests, key, self._request(form, target, route, exchange.ns))

    def _form(self, exchange: Exchange) -> Form:
        headers = exchange.request.headers
        sent_id = headers.get(request_ids.HEADER)
        same = {"outcome": Outcome.HIT.value, "policy": None, "held_until": None}
        return Form(
            is_head=exchange.is_head,
            host=exchange.request.host,
            named_client=self._trusted.named(headers),
            credential=self._access.sealed(headers.get("Authorization")),
            agent=headers.get("User-Agent"),
            sent_id=sent_id,
            request_id=request_ids.accepted(sent_id),
            fields=exchange.fields() | same,
        )

    def _request(self, form: Form, target: Target, route: Route, ns: str | None) -> Request:
        counters = self._recorder.metrics.of(target.upstream)
        return Request(form, target, route, ns, counters, self._callers.is_needed(target))

    def _came_before(self, key: bytes) -> bool:
        """Return True from the second call for a key on."""
        if (number := hash(key)) in self._seen_once:
            return True
        _put(self._seen_once, number, None)
        return False

    def _similar(self, head: bytes) -> Request | None:
        """Return a request for a manifest that has the form of a cached one."""
        form = self._forms.get(self._key(_without_path(head)))
        found = None if form is None else _PATH.match(head)
        if form is None or found is None:
            return None
        path, ns = found[1].decode(), None if found[2] is None else found[2].decode()
        try:
            route = parse_path(path)
            if route.kind is not Kind.MANIFEST or route.as_of is not None:
                return None
            return self._request(form, self._resolve(route.repo, form.host, ns), route, ns)
        except RegistryError:
            return None

    def forget(self) -> None:
        """Drop every request: its name may resolve to another target now."""
        self._requests.clear()
        self._forms.clear()

    def get(
        self, head: bytes, client: str | None, certificate: Certificate | None
    ) -> tuple[bytes, bytes] | None:
        """Return header block and body for a request's bytes, counted and logged.

        None: the general path must answer. ``client`` is the address of the peer.
        """
        known = self._requests.get(key := self._key(head))
        if (request := known or self._similar(head)) is None:
            return None
        started = time.perf_counter()
        form = request.form
        if form.named_client is not None and self._trusted.trusts(client):
            client = form.named_client
        principal = self._access.recognise(form.credential, client, certificate)
        if principal is None:
            return None
        decision = self._access.preview(principal, Action.PULL, request.target)
        found = self._found(request, principal) if decision.is_allowed else None
        if found is None:
            return None
        response = request.response(found, principal, decision)
        if response is None:
            return None
        body = b"" if form.is_head else found.body
        if not self._admits(principal, len(body)):
            return None
        if known is None and self._came_before(key):
            _put(self._requests, key, request)
        self._access.count(decision)
        self._recorder.metrics.cache.prepared_answers += 1
        request.counters.answered(Outcome.HIT, len(body), manifest=request.is_pull)
        self._recorder.metrics.tally.add(request.tallied, 1 if request.is_pull else len(body))
        seconds = time.perf_counter() - started
        request.counters.timed(Outcome.HIT, seconds, seconds)
        request_id = form.request_id or request_ids.make()
        self._log(request, response, seconds, (request_id, principal.address))
        if request.is_pull and self._recorder.announcer.announces_pulls:
            digest = found.descriptor.digest
            self._recorder.announcer.repeated(request.audited, principal, digest, len(body))
        return response.headers(found.fresh, self._end(request_id)), body

    def _found(self, request: Request, principal: Principal) -> Found | None:
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
        if self._recorder.audit.is_nearly_full:
            return False
        return client is None or client.try_request(size)

    def _log(
        self, request: Request, response: Response, seconds: float, about: tuple[str, str | None]
    ) -> None:
        """Log and audit a response, in one line if possible; ``about``: its id and client."""
        recorder, fields = self._recorder, response.fields
        request_id, client = about
        if request.is_pull and recorder.audit.is_on:
            audited, audited_fields = request.audit(response, response.fields["bytes"])
            if recorder.audits_in_request_lines:
                fields = audited_fields
            else:
                recorder.audit.record(Recurrence(audited, time.time(), client))
        recorder.request_log.add(fields, seconds, client, request_id)

    def _end(self, request_id: str) -> bytes:
        """Return the id, the second's ``Date`` (RFC 9110 §6.6.1), and the end of the block."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode()
        return b"X-Request-Id: %b\r\n%b" % (request_id.encode(), self._date)


def _without_path(head: bytes) -> bytes:
    """Return the method and the headers of a request."""
    line, _, headers = head.partition(b"\r\n")
    return line[: line.find(b" ") + 1] + headers


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
