"""What the audit log says about requests: pulls and what was refused, admin actions, logins."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp.web import BaseRequest

from proxy.access.audit import AuditEvent, Event, Verdict
from proxy.access.principals import Principal
from proxy.access.rules import Decision
from proxy.core.errors import PolicyDenied, RateLimited, RegistryError, Unauthorized
from proxy.core.names import Digest, Kind
from proxy.runtime.metrics import Outcome

if TYPE_CHECKING:
    from proxy.web.exchange import Exchange

_ALWAYS: Final = (Verdict.DENIED, Verdict.WOULD_DENY, Verdict.CHALLENGED, Verdict.LIMITED)
"""What is recorded whatever was requested."""


def answered(exchange: "Exchange") -> AuditEvent | None:
    """Return what to record of a request under ``/v2/`` that has ended; None: nothing.

    Recorded are requests for manifests by GET, refused requests, and those that a policy on trial
    would refuse. A client without credentials that is asked for some at ``/v2/`` is no decision.
    """
    request, route, failure = exchange.request, exchange.route, exchange.failure
    if exchange.principal is None:
        has_failed = failure is not None and "Authorization" in request.headers and route
        return login(request, None, failure) if has_failed else None
    decided = verdict(exchange)
    is_pull = route is not None and route.kind is Kind.MANIFEST and request.method == "GET"
    if not is_pull and decided not in _ALWAYS:
        return None
    target, decision, outcome = exchange.target, exchange.decision, exchange.outcome
    return AuditEvent(
        **_client(request, exchange.principal),
        event=Event.PULL,
        outcome=decided,
        upstream=None if target is None else target.upstream,
        repository=None if target is None else target.repo,
        reference=(route.ref or None) if route else None,
        digest=exchange.digest,
        rule=None if decision is None else rule_text(decision),
        policy=exchange.policy,
        because=_reason(exchange.denial, failure),
        cache=None if outcome is None else outcome.value,
        status=exchange.status,
        bytes=exchange.sent,
    )


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the response cache knows of a request for a manifest."""

    upstream: str
    repository: str
    reference: str
    user_agent: str | None
    request_id: str | None

    def hit(
        self, principal: Principal, decision: Decision, digest: Digest, size: int
    ) -> AuditEvent:
        """Return what to record when such a request is answered from the response cache."""
        return AuditEvent(
            event=Event.PULL,
            outcome=Verdict.ALLOWED,
            user=principal.user,
            method=principal.method.name.lower(),
            credential_id=principal.credential_id,
            user_agent=self.user_agent,
            upstream=self.upstream,
            repository=self.repository,
            reference=self.reference,
            digest=digest,
            rule=rule_text(decision),
            cache=Outcome.HIT.value,
            status=200,
            bytes=size,
            request_id=self.request_id,
        )


def administered(
    request: BaseRequest, principal: Principal | None, failure: RegistryError | None
) -> AuditEvent:
    """Return what to record of a request for an operator's page.

    ``principal`` None: it may not administer.
    """
    ended = Verdict.ALLOWED if failure is None else Verdict.FAILED
    return AuditEvent(
        **_client(request, principal),
        event=Event.ADMIN,
        outcome=Verdict.DENIED if principal is None else ended,
        action=f"{request.method} {request.path}",
        reference=request.rel_url.query_string or None,
        because=None if failure is None else failure.message,
        status=200 if failure is None else failure.status,
    )


def hooked(request: BaseRequest, name: str, failure: RegistryError | None) -> AuditEvent:
    """Return what to record of a webhook. The query is left out: it may contain the secret."""
    is_refused = isinstance(failure, Unauthorized)
    verdict = Verdict.ALLOWED if failure is None else Verdict.FAILED
    return AuditEvent(
        event=Event.ADMIN,
        outcome=Verdict.DENIED if is_refused else verdict,
        address=request.remote,
        user_agent=request.headers.get("User-Agent"),
        request_id=request.headers.get("X-Request-Id"),
        action=f"POST /-/hooks/{name}",
        because=None if failure is None else failure.message,
        status=202 if failure is None else failure.status,
    )


def login(
    request: BaseRequest, principal: Principal | None, failure: RegistryError | None
) -> AuditEvent:
    """Return what to record of credentials that were shown; ``principal`` None: they are wrong.

    The user that a client merely claims to be is left out: some clients send a secret as its name.
    """
    refusal = Verdict.LIMITED if failure is not None and failure.status == 429 else Verdict.DENIED
    return AuditEvent(
        **_client(request, principal),
        event=Event.LOGIN,
        outcome=Verdict.ALLOWED if failure is None else refusal,
        because=None if failure is None else failure.message,
        status=200 if failure is None else failure.status,
    )


def _client(request: BaseRequest, principal: Principal | None) -> dict[str, Any]:
    """Return who sent a request, and from where."""
    who = principal or Principal()
    return {
        "user": who.user,
        "method": None if principal is None else who.method.name.lower(),
        "credential_id": who.credential_id,
        "address": request.remote,
        "user_agent": request.headers.get("User-Agent"),
        "request_id": request.headers.get("X-Request-Id"),
    }


def verdict(exchange: "Exchange") -> Verdict:
    """Return what the audit log calls the end of a request."""
    denial, failure = exchange.denial, exchange.failure
    if denial is not None:
        return Verdict.CHALLENGED if denial.login_helps else Verdict.DENIED
    if isinstance(failure, RateLimited):
        return Verdict.LIMITED
    if isinstance(failure, PolicyDenied):
        return Verdict.DENIED
    if exchange.status >= 400:
        return Verdict.FAILED
    return Verdict.ALLOWED if exchange.policy is None else Verdict.WOULD_DENY


def rule_text(decision: Decision) -> str:
    """Return number and text of the rule that decided, or why none did."""
    return decision.text if decision.rule is None else f"{decision.rule}: {decision.text}"


def _reason(denial: Decision | None, failure: RegistryError | None) -> str | None:
    if denial is not None and denial.because is not None:
        return denial.because
    return None if failure is None else failure.message
