"""Which HTTP proxy leads to an upstream: ``HTTP_PROXY``, ``HTTPS_PROXY``, ``NO_PROXY``."""

from typing import TypedDict
from urllib.request import (  # type: ignore[attr-defined] # typeshed lacks the second
    getproxies_environment,
    proxy_bypass_environment,
)

from aiohttp import encode_basic_auth
from yarl import URL


class ProxyArguments(TypedDict, total=False):
    """What aiohttp's ``request`` takes for a proxy."""

    proxy: URL
    proxy_headers: dict[str, str]


class Proxies:
    """The environment's proxies, read once."""

    def __init__(self) -> None:
        self._environment = getproxies_environment()
        self._proxies = {
            scheme: URL(address if "://" in address else f"http://{address}")
            for scheme, address in self._environment.items()
            if scheme in ("http", "https")
        }

    @property
    def addresses(self) -> list[URL]:
        """The proxies' own addresses, which may be private."""
        return list(self._proxies.values())

    def to(self, url: URL) -> ProxyArguments:
        """Return the arguments that send a request for ``url`` the right way."""
        proxy = self._proxies.get(url.scheme)
        authority = f"{url.host}:{url.port}"
        if proxy is None or proxy_bypass_environment(authority, self._environment):
            return {}
        if proxy.user is None:
            return {"proxy": proxy}
        credentials = encode_basic_auth(proxy.user, proxy.password or "")
        headers = {"Proxy-Authorization": credentials}
        return {"proxy": proxy.with_user(None), "proxy_headers": headers}
