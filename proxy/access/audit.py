"""The audit log: a record of each relevant decision, and its text.

It records logins, pulls of manifests, all denials, and actions of operators. Callers build an
``AuditEvent`` and call ``AuditLog.record``, which never waits and never fails. An event has no
field for a secret: ``credential_id`` is the name of an access token, or the ``jti`` of one of
Millpond's tokens.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

MAX_TEXT: Final = 1024
"""Characters of one field; the rest is cut off. Clients choose names, tags and user agents."""


class Event(StrEnum):
    """The kind of event."""

    LOGIN = "login"
    """The client sent credentials, to the token endpoint or elsewhere."""
    PULL = "pull"
    """The client requested a manifest, or anything else that was denied."""
    ADMIN = "admin"
    """The client requested a path under ``/-/`` that is for operators only."""
    LOST = "lost"
    """Lines were lost; ``count`` is the number of missing lines."""


class Verdict(StrEnum):
    """The result of an event."""

    ALLOWED = "allowed"
    DENIED = "denied"
    """Denied by a rule or a policy, or because the credentials are wrong."""
    CHALLENGED = "challenged"
    """The client is anonymous, and must log in."""
    WOULD_DENY = "would deny"
    """Denied by a policy with ``audit: true``: the client got its answer."""
    LIMITED = "limited"
    """Refused because of ``access.limits``."""
    FAILED = "failed"
    """Allowed, but there is no content: it does not exist, or upstream failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One decision; fields that are None are unknown and left out."""

    event: Event
    outcome: Verdict
    user: str | None = None
    method: str | None = None
    """How the user authenticated: ``password``, ``token``, ``oidc``, ``certificate``, …"""
    credential_id: str | None = None
    """Name of the credential; never the credential."""
    address: str | None = None
    user_agent: str | None = None
    action: str | None = None
    """The operator's action, such as ``evict``."""
    upstream: str | None = None
    repository: str | None = None
    reference: str | None = None
    """Tag or digest, as the client wrote it."""
    digest: str | None = None
    """The digest of the answer."""
    rule: str | None = None
    policy: str | None = None
    because: str | None = None
    cache: str | None = None
    """The outcome: ``hit``, ``miss``, …"""
    status: int | None = None
    bytes: int | None = None
    request_id: str | None = None
    count: int | None = None
    time: float = field(default_factory=time.time)
    """Unix seconds."""

    def known(self) -> dict[str, Any]:
        """Return the fields that are known, as JSON values; ``time`` is RFC 3339."""
        known: dict[str, Any] = {"time": _rfc3339(self.time)}
        for name in _NAMES:
            value = getattr(self, name)
            if value is not None:
                known[name] = value[:MAX_TEXT] if isinstance(value, str) else value
        return known


_NAMES: Final = tuple(each.name for each in fields(AuditEvent) if each.name != "time")


@dataclass(slots=True, eq=False)
class Recurring:
    """An event that happens often. Everything except time and address is rendered only once."""

    event: AuditEvent
    rendered: dict[str, str] = field(default_factory=dict)
    """The end of its line as JSON, by the key of the time in that line."""


class Recurrence(NamedTuple):
    """One occurrence of such an event: its time in Unix seconds, and the client's address."""

    what: Recurring
    time: float
    address: str | None

    def event(self) -> AuditEvent:
        """Return the occurrence as an ordinary event."""
        return replace(self.what.event, time=self.time, address=self.address)

    def text(self, time_key: str, known: Callable[[AuditEvent], dict[str, Any]]) -> str:
        """Return the occurrence as JSON; ``known`` returns the fields of an event."""
        end = self.what.rendered.get(time_key)
        if end is None:
            others = {key: each for key, each in known(self.what.event).items() if key != time_key}
            end = self.what.rendered[time_key] = json.dumps(others, separators=(",", ":"))[1:]
        address = "" if self.address is None else f'"address":{_quoted(self.address)},'
        return f'{{"{time_key}":"{_rfc3339(self.time)}",{address}{end}'


class AuditLog(Protocol):
    """Records events."""

    @property
    def is_on(self) -> bool:
        """Events are recorded; without configured access, callers need not build any."""

    def record(self, event: AuditEvent | Recurrence) -> None:
        """Record an event, after all that were recorded before it. Never waits, never fails."""

    @property
    def has_file(self) -> bool:
        """Events go to a file, not to the log that requests go to."""

    @property
    def is_nearly_full(self) -> bool:
        """Await ``wait_for_room`` before the next request is answered."""

    async def wait_for_room(self) -> None:
        """Wait for room for more events, for a moment."""


def line(event: AuditEvent | Recurrence) -> bytes:
    """Return the event as one line of JSON, in ASCII, with its line end.

    JSON escapes line ends and all other control characters, so text from a client can neither
    begin another line nor control a terminal.
    """
    if isinstance(event, Recurrence):
        return event.text("time", AuditEvent.known).encode("ascii") + b"\n"
    return json.dumps(event.known(), separators=(",", ":")).encode("ascii") + b"\n"


def entry(event: AuditEvent) -> dict[str, Any]:
    """Return the event as an event of the ordinary log, which a terminal may show."""
    known = {name: _printable(value) for name, value in event.known().items()}
    about = {"event": "audit", "level": "info", "timestamp": known.pop("time")}
    return about | {"audit": known.pop("event")} | known


def request_line_fields(event: AuditEvent) -> dict[str, Any]:
    """Return the fields that the request line of an allowed pull needs to be its audit line too."""
    return {
        "audit": event.event.value,
        "digest": event.digest,
        "login": event.method,
        "credential_id": _printable(event.credential_id),
        "rule": event.rule,
    }


def _printable(value: Any) -> Any:
    """Return a text with all non-printable characters escaped."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)


def _rfc3339(at: float) -> str:
    second = int(at)
    return f"{_date(second)}.{int((at - second) * 1000):03d}Z"


@lru_cache(16)
def _date(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_quoted = lru_cache(4096)(json.dumps)
