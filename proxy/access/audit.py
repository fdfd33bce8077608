"""The audit log: one record for each decision that matters, and what is written of it.

Recorded are logins, pulls of manifests, everything that is denied, and what operators do. Callers
build an ``AuditEvent`` and call ``AuditLog.record``, which never waits and never fails. An event
has no field for a secret: ``credential_id`` is the name of a token or the ``jti`` of one of ours.
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
    """What a client did."""

    LOGIN = "login"
    """It showed credentials, at the token endpoint or elsewhere."""
    PULL = "pull"
    """It asked for a manifest, or for anything else that it may not have."""
    ADMIN = "admin"
    """It asked for something under ``/-/`` that only operators may do."""
    LOST = "lost"
    """Lines could not be kept; ``count`` says how many are missing here."""


class Verdict(StrEnum):
    """How it ended."""

    ALLOWED = "allowed"
    DENIED = "denied"
    """By a rule, a policy, or because the credentials are wrong."""
    CHALLENGED = "challenged"
    """The client is anonymous, and must log in."""
    WOULD_DENY = "would deny"
    """By a policy that is on trial: the client got its answer."""
    LIMITED = "limited"
    """By a limit of ``access.limits``."""
    FAILED = "failed"
    """Allowed, but there was no answer to give: absent, or upstream failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One decision; fields that are None are unknown and left out."""

    event: Event
    outcome: Verdict
    user: str | None = None
    method: str | None = None
    """How the user was proven: ``password``, ``token``, ``oidc``, ``certificate``, …"""
    credential_id: str | None = None
    """Name of the credential; never the credential."""
    address: str | None = None
    user_agent: str | None = None
    action: str | None = None
    """What an operator did, as in ``evict``."""
    upstream: str | None = None
    repository: str | None = None
    reference: str | None = None
    """Tag or digest, as the client wrote it."""
    digest: str | None = None
    """What the client got."""
    rule: str | None = None
    policy: str | None = None
    because: str | None = None
    cache: str | None = None
    """How the cache answered: ``hit``, ``miss``, …"""
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
    """An event that happens often. All of it but time and address is rendered once."""

    event: AuditEvent
    rendered: dict[str, str] = field(default_factory=dict)
    """The end of its line as JSON, by the key that its time has there."""


class Recurrence(NamedTuple):
    """One time that such an event happened, in Unix seconds, and the client's address."""

    what: Recurring
    time: float
    address: str | None

    def event(self) -> AuditEvent:
        """Return it as an event like others."""
        return replace(self.what.event, time=self.time, address=self.address)

    def text(self, time_key: str, known: Callable[[AuditEvent], dict[str, Any]]) -> str:
        """Return it as JSON; ``known`` returns the fields of an event."""
        end = self.what.rendered.get(time_key)
        if end is None:
            others = {key: each for key, each in known(self.what.event).items() if key != time_key}
            end = self.what.rendered[time_key] = json.dumps(others, separators=(",", ":"))[1:]
        address = "" if self.address is None else f'"address":{_quoted(self.address)},'
        return f'{{"{time_key}":"{_rfc3339(self.time)}",{address}{end}'


class AuditLog(Protocol):
    """Where events are recorded."""

    @property
    def is_on(self) -> bool:
        """Events are recorded; without configured access there is no need to make any."""

    def record(self, event: AuditEvent | Recurrence) -> None:
        """Record an event, after all that were recorded before it. Never waits, never fails."""

    @property
    def has_file(self) -> bool:
        """Events go to a file, not to the log that requests go to."""

    @property
    def is_nearly_full(self) -> bool:
        """Await ``room`` before the next request is answered."""

    async def room(self) -> None:
        """Wait for room for more events, for a moment."""


def line(event: AuditEvent | Recurrence) -> bytes:
    """Return the event as one line of JSON, in ASCII, with its line end.

    JSON escapes line ends and all other control characters, so no text of a client can begin
    another line or change a terminal.
    """
    if isinstance(event, Recurrence):
        return event.text("time", AuditEvent.known).encode("ascii") + b"\n"
    return json.dumps(event.known(), separators=(",", ":")).encode("ascii") + b"\n"


def entry(event: AuditEvent) -> dict[str, Any]:
    """Return the event as an event of the ordinary log, which a terminal may show."""
    known = {name: _printable(value) for name, value in event.known().items()}
    about = {"event": "audit", "level": "info", "timestamp": known.pop("time")}
    return about | {"audit": known.pop("event")} | known


def carried(event: AuditEvent) -> dict[str, Any]:
    """Return what the request line of an allowed pull lacks to stand for its audit line."""
    return {
        "audit": event.event.value,
        "digest": event.digest,
        "login": event.method,
        "credential_id": _printable(event.credential_id),
        "rule": event.rule,
    }


def _printable(value: Any) -> Any:
    """Return a text with everything escaped that a terminal would not print."""
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
