"""Emits an event for each pull, and for each pull that a rule denies."""

import time
from typing import TYPE_CHECKING, Final

from cachetools import TTLCache

from proxy.access.audit import Verdict
from proxy.access.principals import Principal
from proxy.core.names import Digest, Kind, is_digest
from proxy.runtime.events import Emitter, EventKind
from proxy.runtime.metrics import Outcome
from proxy.web import audit_events
from proxy.web.audit_events import CachedPull

if TYPE_CHECKING:
    from proxy.web.exchange import Exchange

DENIED_SECONDS: Final = 60.0
"""The same denial of the same client causes at most one event in this time."""

_MAX_DENIED: Final = 10_000
_MAX_AGENT: Final = 100


class Announcer:
    """Emits events about requests that have ended."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._denied: TTLCache[tuple[str, str | None], None] = TTLCache(
            _MAX_DENIED, DENIED_SECONDS, time.monotonic
        )

    @property
    def announces_pulls(self) -> bool:
        """A subscriber wants events about pulls."""
        return self._emitter.wanted(EventKind.PULL)

    def ended(self, exchange: "Exchange") -> None:
        """Announce a request under ``/v2/`` that has ended, if it is a pull or was denied."""
        if exchange.status == 200:
            if exchange.is_pull and self.announces_pulls:
                self._pulled(exchange)
        elif exchange.failure is not None and audit_events.verdict(exchange) is Verdict.DENIED:
            self._deny(exchange)

    def repeated(
        self, request: CachedPull, principal: Principal, digest: Digest, size: int
    ) -> None:
        """Announce a pull that the response cache has answered."""
        self._emitter.emit(
            EventKind.PULL,
            _image(f"{request.upstream}/{request.repository}", request.reference),
            digest=digest,
            client=principal.user or principal.address,
            outcome=Outcome.HIT.value,
            bytes=size,
            user_agent=_short(request.user_agent),
        )

    def _pulled(self, exchange: "Exchange") -> None:
        route, outcome = exchange.route, exchange.outcome
        assert route is not None
        self._emitter.emit(
            EventKind.PULL,
            _image(str(exchange.target), route.ref),
            digest=exchange.digest,
            client=_client(exchange),
            outcome=None if outcome is None else outcome.value,
            bytes=exchange.sent,
            user_agent=_short(exchange.request.headers.get("User-Agent")),
        )

    def _deny(self, exchange: "Exchange") -> None:
        route, client = exchange.route, _client(exchange)
        if route is None or not route.repo:
            return  # requests for /v2/ and the catalogue are not pulls
        name = route.repo if exchange.target is None else str(exchange.target)
        subject = _image(name, route.ref) if route.kind is Kind.MANIFEST else name
        if (subject, client) in self._denied:
            return
        self._denied[subject, client] = None
        self._emitter.emit(EventKind.DENIED, subject, client=client, because=_because(exchange))


def _image(name: str, ref: str) -> str:
    return f"{name}@{ref}" if is_digest(ref) else f"{name}:{ref}"


def _client(exchange: "Exchange") -> str | None:
    """Return the user, or the address of a client without one."""
    principal = exchange.principal
    known = None if principal is None else principal.user or principal.address
    return known or exchange.request.remote


def _because(exchange: "Exchange") -> str | None:
    """Return why a request was denied: the rule of access, or the message of a policy."""
    denial, failure = exchange.denial, exchange.failure
    if denial is not None:
        return denial.because or audit_events.rule_text(denial)
    return None if failure is None else failure.message


def readable(text: str, most: int) -> str:
    """Return the first characters of a text that a client sent, as text that UTF-8 can express.

    aiohttp turns bytes that are no UTF-8 into surrogates, which serializers of JSON refuse.
    """
    return text[:most].encode(errors="replace").decode()


def _short(agent: str | None) -> str | None:
    return None if agent is None else readable(agent, _MAX_AGENT)
