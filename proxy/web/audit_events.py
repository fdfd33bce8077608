"""Events of the audit log about requests: pulls, refusals, admin actions, logins."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp.web import BaseRequest

from proxy.access.audit import AuditEvent, AuditLog, Event, Verdict
from proxy.access.principals import Principal
from proxy.access.rules import Decision
from proxy.core.errors import PolicyDenied, RateLimited, RegistryError, Unauthorized
from proxy.core.names import Digest, Kind
from proxy.runtime.metrics import Outcome

if TYPE_CHECKING:
    from proxy.web.exchange import Exchange

_ALWAYS: Final = (Verdict.DENIED, Verdict.WOULD_DENY, Verdict.CHALLENGED, Verdict.LIMITED)
"""Verdicts that are recorded for every kind of request."""


def of_request(exchange: "Exchange") -> AuditEvent | None:
    """Return the event of a request under ``/v2/`` that has ended, None for no event.

    Recorded are requests for manifests by GET, refused requests, and those that a policy with
    ``audit: true`` would refuse. The challenge at ``/v2/`` for a client without credentials is not.
    """
    request, route, failure = exchange.request, exchange.route, exchange.failure
    if exchange.principal is None:
        has_failed = failure is not None and "Authorization" in request.headers and route
        return of_login(request, None, failure) if has_failed else None
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
class CachedPull:
    """The facts that the response cache stores about a request for a manifest."""

    upstream: str
    repository: str
    reference: str
    user_agent: str | None
    request_id: str | None

    def hit(
        self, principal: Principal, decision: Decision, digest: Digest, size: int
    ) -> AuditEvent:
        """Return the event of such a request that the response cache has answered."""
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


def of_admin_request(
    request: BaseRequest, principal: Principal | None, failure: RegistryError | None
) -> AuditEvent:
    """Return the event of a request for an operator's page.

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


def of_webhook(request: BaseRequest, name: str, failure: RegistryError | None) -> AuditEvent:
    """Return the event of a webhook, without the query, which may contain the secret."""
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


def of_login(
    request: BaseRequest, principal: Principal | None, failure: RegistryError | None
) -> AuditEvent:
    """Return the event of a login; ``principal`` None: the credentials are wrong.

    The claimed user name is omitted: some clients send a secret as the name.
    """
    refusal = Verdict.LIMITED if failure is not None and failure.status == 429 else Verdict.DENIED
    return AuditEvent(
        **_client(request, principal),
        event=Event.LOGIN,
        outcome=Verdict.ALLOWED if failure is None else refusal,
        because=None if failure is None else failure.message,
        status=200 if failure is None else failure.status,
    )


def record_wrong_login(audit: AuditLog, request: BaseRequest, failure: RegistryError) -> None:
    """Record wrong credentials on a page that answers nevertheless, where they could be tried."""
    if audit.is_on and "Authorization" in request.headers and failure.status in (401, 429):
        audit.record(of_login(request, None, failure))


def _client(request: BaseRequest, principal: Principal | None) -> dict[str, Any]:
    """Return the sender of a request and its address."""
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
    """Return the verdict on a request for the audit log."""
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
    """Return number and text of the rule that decided, or the reason without a rule."""
    return decision.text if decision.rule is None else f"{decision.rule}: {decision.text}"


def _reason(denial: Decision | None, failure: RegistryError | None) -> str | None:
    if denial is not None and denial.because is not None:
        return denial.because
    return None if failure is None else failure.message
