"""Decides who may use the Admin API, and writes the audit log."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiohttp.web import Request

from proxy.access.audit import AuditLog
from proxy.access.operator import AdminAccess
from proxy.access.principals import Method, Principal
from proxy.core.errors import Denied, RegistryError
from proxy.web import audit_events
from proxy.web.admin.api.routes import AnyRoute
from proxy.web.forwarded import TrustedProxies

_AMBIENT: Final = (Method.ANONYMOUS, Method.CERTIFICATE, Method.SOCKET)
"""Credentials that a browser sends with requests of any page: an address, or a certificate."""

Authorize = Callable[[], Awaitable[Principal]]
"""Returns the administrator, or raises ``RegistryError``."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Authorizes requests, and records changes and refused requests."""

    access: AdminAccess
    audit: AuditLog
    trusted: TrustedProxies

    async def identify(
        self, route: AnyRoute, request: Request, authorize: Authorize
    ) -> Principal | None:
        """Return the administrator, None for another client of a public route.

        Raises ``RegistryError``.
        """
        try:
            principal = await authorize()
        except RegistryError as error:
            if not route.is_public:
                raise
            audit_events.record_wrong_login(self.audit, request, error)
            self.access.observe(request.remote)
            return None
        if route.is_change:
            self._refuse_other_sites(request, principal)
        return principal

    def _refuse_other_sites(self, request: Request, principal: Principal) -> None:
        """Raise ``Denied`` for a change from a web page, unless the page is ours (CSRF).

        A browser adds ``Origin`` (RFC 6454 §7). It sends requests of other sites from the
        operator's network and with the operator's certificate, but without ``Authorization``.
        """
        origin = request.headers.get("Origin")
        if origin is None:
            return
        if _host(origin) != self.trusted.origin(request)[1].lower():
            raise Denied("web pages of other sites cannot change anything here")
        if principal.method in _AMBIENT:
            raise Denied("a web page has to send Authorization to change something")

    def record(
        self,
        route: AnyRoute,
        request: Request,
        principal: Principal | None,
        failure: RegistryError | None,
    ) -> None:
        """Record a change, or a request that was refused."""
        is_refused = principal is None and not route.is_public
        if self.audit.is_on and (route.is_change or is_refused):
            self.audit.record(audit_events.of_admin_request(request, principal, failure))


def _host(origin: str) -> str | None:
    """Return host and port of an origin, None for a malformed one."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
