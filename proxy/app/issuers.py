"""Fetches the documents of OpenID Connect issuers. That is rare, so no connection is kept.

Addresses come from the configuration, and from documents of issuers that it trusts.
"""

import ssl
from typing import TYPE_CHECKING, Final

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from yarl import URL

from proxy import VERSION
from proxy.core.errors import ConfigError, UpstreamUnavailable
from proxy.settings.access import OIDCIssuer
from proxy.upstream.transport import Proxies

if TYPE_CHECKING:  # it imports PyJWT and cryptography, which a proxy without issuers does not need
    from proxy.access.jwks import Fetch

MAX_DOCUMENT: Final = 256 * 1024
TIMEOUT_SECONDS: Final = 5.0


def fetch_for(issuer: OIDCIssuer) -> "Fetch":
    """Return a function that fetches an issuer's documents. Raises ``ConfigError``."""
    context, proxies = issuer_context(issuer), Proxies()

    async def fetch(url: str) -> bytes:
        async with _session(context) as session:
            return await _document(session, proxies, url)

    return fetch


async def _document(session: ClientSession, proxies: Proxies, url: str) -> bytes:
    """Return a document of at most ``MAX_DOCUMENT`` bytes; redirects are not followed."""
    try:
        proxy, headers = proxies.route(URL(url))
        async with session.get(
            url, allow_redirects=False, proxy=proxy, proxy_headers=headers
        ) as response:
            if response.status != 200:
                raise UpstreamUnavailable(f"{url} answers {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_DOCUMENT:
                    raise UpstreamUnavailable(f"{url}: more than {MAX_DOCUMENT} bytes")
            return bytes(body)
    except (TimeoutError, ClientError, OSError, ValueError) as error:
        raise UpstreamUnavailable(f"{url}: {type(error).__name__}") from error


def issuer_context(issuer: OIDCIssuer) -> ssl.SSLContext:
    """Return the TLS settings for connections to an issuer. Raises ``ConfigError``."""
    try:
        context = ssl.create_default_context()
        if issuer.ca_file is not None:
            context.load_verify_locations(issuer.ca_file)
    except OSError as error:
        raise ConfigError(f"access.oidc: {issuer.ca_file} cannot be used: {error}") from None
    return context


def _session(context: ssl.SSLContext) -> ClientSession:
    return ClientSession(
        connector=TCPConnector(ssl=context, limit=2),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=TIMEOUT_SECONDS),
        headers={"User-Agent": f"millpond/{VERSION}", "Accept": "application/json"},
    )
