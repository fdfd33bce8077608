"""Which web pages a browser may show what is under ``/-/``: only those of Millpond itself.

A page that a person visits can send requests to addresses that only the person's machine reaches,
such as a loopback address. A browser hides the answers from it, unless the page's own host name
resolves to that address, too (DNS rebinding). Such requests have a foreign ``Host``.
"""

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp.web import BaseRequest

from proxy.core.errors import Denied
from proxy.settings import Settings
from proxy.web.forwarded import TrustedProxies

OPEN: Final = ("/-/healthz", "/-/readyz")
"""Probes, which say nothing about content, may use any name."""

_SAFE_SUFFIXES: Final = (".localhost", ".internal")
"""Names below these cannot be registered, so no web page has one (RFC 6761; ICANN, 2024)."""


class Sites:
    """Refuses requests of web pages that are not ours."""

    def __init__(self, settings: Settings, trusted: TrustedProxies) -> None:
        self._trusted = trusted
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Accept the names of these settings from now on.

        Names matter only where the network is the protection: on a loopback address without access.
        """
        is_local = _is_loopback(settings.host) and not settings.access.is_configured
        self._names = frozenset(_names(settings)) if is_local else None

    def check(self, request: BaseRequest) -> None:
        """Return if a request may come from a page of ours, or from no page. Raises ``Denied``."""
        path = request.rel_url.raw_path
        if path in OPEN or not path.startswith("/-"):
            return
        if _is_of_other_site(request):
            raise Denied("web pages of other sites cannot read this")
        names, host = self._names, _without_port(request.headers.get("Host", ""))
        if names is None or host in names or _is_safe(host) or self._trusted.forwards(request):
            return
        raise Denied(
            "Host is not a name of this Millpond; use its address or localhost, or add the reverse "
            "proxy in between to access.trusted_proxies"
        )


def _is_of_other_site(request: BaseRequest) -> bool:
    """Return True for a request that a page of another site sends; links are no such requests.

    https://www.w3.org/TR/fetch-metadata/
    """
    headers = request.headers
    is_link = headers.get("Sec-Fetch-Mode") == "navigate"
    return headers.get("Sec-Fetch-Site") == "cross-site" and not is_link


def _names(settings: Settings) -> Iterator[str]:
    """Yield the host names that lead to this Millpond."""
    yield socket.gethostname().lower()
    for upstream in settings.upstreams.values():
        yield from map(_without_port, upstream.hostnames)
    if settings.fleet.advertise is not None:
        yield urlsplit(settings.fleet.advertise).hostname or ""


def _without_port(host: str) -> str:
    """Return the name or address of a ``Host``, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _is_safe(host: str) -> bool:
    """Return True for what no web page can have as its name: addresses, and single labels."""
    return "." not in host or host.endswith(_SAFE_SUFFIXES) or _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
