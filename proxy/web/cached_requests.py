"""The requests in the response cache, and the last response to each."""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.access.audit import Recurring, request_line_fields
from proxy.access.principals import Principal
from proxy.access.rules import Decision
from proxy.core.names import Kind, Route, Target
from proxy.core.records import Descriptor
from proxy.repository.memory_lookup import Found
from proxy.runtime.metrics import UpstreamCounters
from proxy.runtime.tally import Key
from proxy.web.audit_events import CachedPull
from proxy.web.blob import blob_headers
from proxy.web.exchange import HIT_STATUS, common_headers
from proxy.web.replies import manifest_headers

_STATUS_LINE: Final = f"Cache-Status: {HIT_STATUS}"


@dataclass(slots=True, eq=False)
class Response:
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
    audited: tuple[Recurring, dict[str, Any]] | None = None
    """The event for the audit log, and the fields of a request line that is its audit line too."""

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


@dataclass(frozen=True, slots=True)
class Form:
    """The common part of requests with the same method and headers."""

    is_head: bool
    host: str
    named_client: str | None
    """The client that the headers name; counts only on connections of trusted proxies."""
    credential: bytes | None
    """A keyed hash of ``Authorization``."""
    agent: str | None
    sent_id: str | None
    """``X-Request-Id`` as the client sent it."""
    request_id: str | None
    """That, if it is accepted; None: each response has a new one."""
    fields: dict[str, Any]
    """The log fields that do not depend on the path."""


@dataclass(slots=True)
class Request:
    """A cached request, and its last response."""

    form: Form
    target: Target
    route: Route
    ns: str | None
    counters: UpstreamCounters
    is_callers: bool
    """Its upstream has ``credentials: caller``, and has to confirm each client."""
    is_pull: bool = field(init=False)
    """Counts as a pull in rate limits, and is audited."""
    tallied: Key = field(init=False)
    """The counters of its image."""
    last: Response | None = None

    def __post_init__(self) -> None:
        self.is_pull = self.route.kind is Kind.MANIFEST and not self.form.is_head
        self.tallied = self.target, self.route.ref if self.is_pull else ""

    @property
    def audited(self) -> CachedPull:
        """The facts about it for listeners and the audit log."""
        return CachedPull(*self.target, self.route.ref, self.form.agent, self.form.sent_id)

    def audit(self, response: Response, size: int) -> tuple[Recurring, dict[str, Any]]:
        """Return ``audited`` of a response to a pull."""
        if response.audited is None:
            digest = response.descriptor.digest
            event = self.audited.hit(response.principal, response.decision, digest, size)
            response.audited = Recurring(event), response.fields | request_line_fields(event)
        return response.audited

    def response(self, found: Found, principal: Principal, decision: Decision) -> Response | None:
        """Return the response for the found content, None if a header is not printable."""
        last = self.last
        if last is None or not last.is_for(found.descriptor, principal, decision):
            self.last = last = self._make(found, principal, decision)
        return last

    def _make(self, found: Found, principal: Principal, decision: Decision) -> Response | None:
        descriptor, route = found.descriptor, self.route
        is_blob = route.kind is Kind.BLOB
        headers = common_headers(self.ns, HIT_STATUS)
        headers.update(blob_headers(descriptor.digest) if is_blob else manifest_headers(descriptor))
        headers["Content-Length"] = str(len(found.body))
        if not all(value.isprintable() for value in headers.values()):
            return None
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        before, status, after = f"HTTP/1.1 200 OK\r\n{lines}".partition(_STATUS_LINE)
        sent = 0 if self.form.is_head else len(found.body)
        fields = self.form.fields | {
            "kind": route.kind.name.lower(),
            "upstream": self.target.upstream,
            "repository": self.target.repo,
            "reference": route.ref,
            "bytes": sent,
            "user": principal.user,
        }
        block = (before + status).encode(), after.encode()
        return Response(descriptor, principal, decision, *block, fields)


def _proof(principal: Principal) -> tuple[object, ...]:
    """Return the log fields about a client, without its address."""
    return principal.user, principal.method, principal.credential_id
