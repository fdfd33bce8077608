"""What the response cache keeps of requests, and of the last response to each."""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.access.audit import Recurring, carried
from proxy.access.principals import Principal
from proxy.access.rules import Decision
from proxy.core.names import Kind, Route, Target
from proxy.core.records import Descriptor
from proxy.repository.memory_lookup import Found
from proxy.runtime.metrics import UpstreamCounters
from proxy.runtime.tally import Key
from proxy.web.audited import Remembered
from proxy.web.blob import blob_headers
from proxy.web.exchange import HIT_STATUS, common_headers
from proxy.web.replies import manifest_headers

_STATUS_LINE: Final = f"Cache-Status: {HIT_STATUS}"


@dataclass(slots=True, eq=False)
class Response:
    """The header block of one response in two parts, what is logged, and what it depends on.

    Between the parts goes the freshness, behind them the id and the date. The body is not kept
    here: it would exceed the RAM set aside for content.
    """

    descriptor: Descriptor
    principal: Principal
    decision: Decision
    before: bytes
    after: bytes
    fields: dict[str, Any]
    audited: tuple[Recurring, dict[str, Any]] | None = None
    """What the audit log records, and the fields of a request line that records it too."""

    def is_for(self, descriptor: Descriptor, principal: Principal, decision: Decision) -> bool:
        """Return True if all is the same, but perhaps the client's address."""
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
    """What requests with the same method and headers have in common."""

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
    """What is logged, but for what the path says."""


@dataclass(slots=True)
class Request:
    """A remembered request, and its last response."""

    form: Form
    target: Target
    route: Route
    ns: str | None
    counters: UpstreamCounters
    is_callers: bool
    """Its upstream is asked as its clients, and has to confirm each of them."""
    is_pull: bool = field(init=False)
    """Counts as a pull in rate limits, and is audited."""
    tallied: Key = field(init=False)
    """What it counts for, by image."""
    last: Response | None = None

    def __post_init__(self) -> None:
        self.is_pull = self.route.kind is Kind.MANIFEST and not self.form.is_head
        self.tallied = self.target, self.route.ref if self.is_pull else ""

    @property
    def audited(self) -> Remembered:
        """What listeners and the audit log get to know about it."""
        return Remembered(*self.target, self.route.ref, self.form.agent, self.form.sent_id)

    def audit(self, response: Response, size: int) -> tuple[Recurring, dict[str, Any]]:
        """Return what the audit log records about a response to a pull, as ``Response`` has it."""
        if response.audited is None:
            digest = response.descriptor.digest
            event = self.audited.hit(response.principal, response.decision, digest, size)
            response.audited = Recurring(event), response.fields | carried(event)
        return response.audited

    def response(self, found: Found, principal: Principal, decision: Decision) -> Response | None:
        """Return the response for what was found, None if a header is not printable."""
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
    """Return what is logged about a client, but for its address."""
    return principal.user, principal.method, principal.credential_id
