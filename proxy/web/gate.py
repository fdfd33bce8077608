"""Enforces access for each request under ``/v2/``: identification, decision, challenge."""

from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import urlencode

from aiohttp.web import BaseRequest

from proxy.access.control import AccessControl
from proxy.access.identity import Certificate
from proxy.access.limits import ClientLimits
from proxy.access.principals import Principal
from proxy.access.rules import Action
from proxy.core.errors import RegistryError, Unauthorized
from proxy.core.names import Kind, Target, parse_path
from proxy.core.routing import Router
from proxy.policies import Policies
from proxy.web.callers import CallerGate
from proxy.web.connection import Connection
from proxy.web.exchange import Exchange
from proxy.web.forwarded import TrustedProxies

TOKEN_PATH: Final = "/-/token"  # noqa: S105 - a path


class Presented(NamedTuple):
    """The credentials that a client presents."""

    authorization: str | None
    address: str | None
    certificate: Certificate | None

    @property
    def has_token(self) -> bool:
        """The client presents a Bearer token."""
        return self.authorization is not None and self.authorization[:7].lower() == "bearer "


def presented(request: BaseRequest) -> Presented:
    """Return the credentials of a request."""
    connection = request.protocol
    certificate = connection.certificate if isinstance(connection, Connection) else None
    return Presented(request.headers.get("Authorization"), request.remote, certificate)


class Guards(NamedTuple):
    """The deciders about requests: access rules, limits, policies, and logins for upstreams."""

    access: AccessControl
    limits: ClientLimits
    policies: Policies
    callers: CallerGate


class Gate:
    """Identifies clients and enforces decisions; the exchange records both for the log."""

    def __init__(self, guards: Guards, router: Router, trusted: TrustedProxies) -> None:
        self._access, self._limits, self.policies, self.callers = guards
        self._router = router
        self._trusted = trusted

    async def identify(self, request: BaseRequest) -> Principal:
        """Return the sender of a request. Raises ``Unauthorized`` or ``TooManyRequests``."""
        sent = presented(request)
        return await self._access.identify(*sent, self._for_upstream(request, sent))

    def _for_upstream(self, request: BaseRequest, sent: Presented) -> str | None:
        """Return the upstream that Basic credentials of a request may be for."""
        if sent.authorization is None or sent.authorization[:6].lower() != "basic ":
            return None
        repo = parse_path(request.path).repo
        ns = request.query.get("ns") or None
        return self.callers.upstream([repo] if repo else [], request.host, ns)

    async def admit(self, exchange: Exchange, principal: Principal) -> None:
        """Return when it is the client's turn. Raises ``RateLimited``."""
        exchange.client = self._limits.client(principal)
        exchange.counted = exchange.client or self._limits.counted(principal)
        if exchange.counted is not None:
            await exchange.counted.admit()

    def resolve(self, exchange: Exchange, principal: Principal) -> Target:
        """Return the requested repository if the client may pull from it.

        Raises ``RegistryError``. The decision comes before any lookup, and a client that may not
        connect does not learn which upstreams are configured.
        """
        assert exchange.route is not None
        try:
            target = self._target(exchange)
        except RegistryError:
            self.enforce(exchange, principal, Action.CONNECT)
            raise
        exchange.target = target
        self.enforce(exchange, principal, Action.PULL)
        return target

    def enforce(self, exchange: Exchange, principal: Principal, action: Action) -> None:
        """Return if the client may do this. Raises ``Unauthorized`` or ``Denied``."""
        exchange.decision = self._access.decide(principal, action, exchange.target)
        exchange.decision.enforce()

    def greet(self, exchange: Exchange, principal: Principal) -> None:
        """Return if ``/v2/`` may be answered. Raises ``Unauthorized`` or ``Denied``.

        With access configured, a client without a user must send at least an anonymous token:
        Docker and Podman send credentials later only if they are challenged here.
        """
        self.enforce(exchange, principal, Action.CONNECT)
        if not self._access.is_configured or principal.user is not None or principal.is_operator:
            return
        if not presented(exchange.request).has_token and principal.caller is None:
            raise Unauthorized("authentication required")

    def may_see(self, principal: Principal, target: Target) -> bool:
        """Return True if a list may name a repository to this client."""
        if not self._access.preview(principal, Action.PULL, target).is_allowed:
            return False
        return self.callers.is_confirmed(principal, target)

    def challenge(self, exchange: Exchange) -> str:
        """Return a Bearer challenge that names our token endpoint (distribution ``token.md``).

        Its realm names the upstream, because scopes have only the repository as the client wrote
        it. For a client that sent a token, it states whether that is wrong or insufficient (RFC
        6750 §3.1), which keeps containerd from repeating the request.
        """
        request, route = exchange.request, exchange.route
        scheme, host = self._trusted.origin(request)
        upstream = self._upstream(exchange)
        query = "" if upstream is None else "?" + urlencode({"ns": upstream})
        parts = [f'realm="{scheme}://{host}{TOKEN_PATH}{query}"', f'service="{host}"']
        if route is not None and route.kind is Kind.CATALOG:
            parts.append('scope="registry:catalog:*"')
        elif route is not None and route.repo:
            parts.append(f'scope="repository:{route.repo}:pull"')
        if presented(request).has_token:
            is_known = exchange.principal is not None
            parts.append(f'error="{"insufficient_scope" if is_known else "invalid_token"}"')
        return "Bearer " + ",".join(parts)

    def _upstream(self, exchange: Exchange) -> str | None:
        """Return the upstream of a request, None if it names none."""
        with suppress(RegistryError):
            if exchange.target is None and exchange.route is not None and exchange.route.repo:
                return self._target(exchange).upstream
        return exchange.ns if exchange.target is None else exchange.target.upstream

    def _target(self, exchange: Exchange) -> Target:
        assert exchange.route is not None
        return self._router.resolve(exchange.route.repo, exchange.request.host, exchange.ns)
