"""HTTP to one upstream: sends, follows redirects, counts, and turns library errors into ours.

``Authorization`` goes to the upstream's own origin only (distribution-spec "Redirects"). Addresses
with signatures in their query never reach a message.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from time import time
from typing import Final, NamedTuple

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from yarl import URL

from proxy.errors import ConfigError, UpstreamTimeout, UpstreamUnavailable
from proxy.metrics import UpstreamCounters
from proxy.settings import Timeouts, UpstreamTLS
from proxy.upstream.auth import TokenAnswer
from proxy.upstream.guard import Guard, GuardedResolver
from proxy.upstream.proxies import Proxies

MAX_REDIRECTS: Final = 5
MAX_RETRY_AFTER: Final = 24 * 3600.0
MAX_ERROR_BODY: Final = 64 * 1024
READ_BUFFER: Final = 1024 * 1024
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Trust(NamedTuple):
    """Whom one upstream's connections trust: which certificates, and which addresses."""

    context: ssl.SSLContext
    guard: Guard


class Transport:
    """One upstream's connections. Close it when done."""

    def __init__(
        self,
        name: str,
        *,
        trust: Trust,
        timeouts: Timeouts,
        counters: UpstreamCounters,
        user_agent: str,
    ) -> None:
        self.name = name
        self.counters = counters
        self._guard = trust.guard
        self._proxies = Proxies()
        trust.guard.permit_dialling(self._proxies.hosts)
        self._session = ClientSession(
            connector=TCPConnector(
                limit=0, ssl=trust.context, resolver=GuardedResolver(trust.guard)
            ),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
            skip_auto_headers=("Accept",),
            timeout=ClientTimeout(
                total=None, sock_connect=timeouts.connect, sock_read=timeouts.idle
            ),
            read_bufsize=READ_BUFFER,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def send(
        self, method: str, url: URL, headers: dict[str, str], authorization: str | None
    ) -> ClientResponse:
        """Return the answer behind all redirects; its caller reads or closes it.

        Raises ``UpstreamUnavailable`` or ``UpstreamTimeout``.
        """
        origin = url.origin()
        self.counters.upstream_requests += 1
        for _ in range(MAX_REDIRECTS + 1):
            sent = dict(headers)
            if authorization is not None and url.origin() == origin:
                sent["Authorization"] = authorization
            response = await self._request(method, url, sent)
            if response.status not in _REDIRECTS:
                return response
            await self.drain(response)
            url = self._next(response)
        raise UpstreamUnavailable(f"{self.name} redirects more than {MAX_REDIRECTS} times")

    async def fetch_token(self, url: URL, authorization: str | None) -> TokenAnswer:
        """Return what a token server says. Raises ``UpstreamFailure``."""
        self._guard.check(url.host or "")
        self.counters.token_requests += 1
        headers = {} if authorization is None else {"Authorization": authorization}
        response = await self._request("GET", url, headers)
        body = await self._small(response)
        return TokenAnswer(response.status, body, retry_after(response))

    async def drain(self, response: ClientResponse) -> bytes:
        """Read a small body to its end, so that the connection can serve again; return it."""
        body = await self._small(response)
        self.counters.bytes_from_upstream += len(body)
        return body

    async def _request(self, method: str, url: URL, headers: dict[str, str]) -> ClientResponse:
        via = self._proxies.to(url)
        if url.scheme == "http":  # inside a tunnel, aiohttp sends them to the proxy only
            headers = {**headers, **via.get("proxy_headers", {})}
        with self.translated():
            return await self._session.request(
                method, url, headers=headers, allow_redirects=False, **via
            )

    async def _small(self, response: ClientResponse) -> bytes:
        """Return a body of up to 64 KiB; a larger one is cut and its connection closed."""
        body = bytearray()
        with self.translated():
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_ERROR_BODY:
                    response.close()
                    break
        return bytes(body)

    async def chunks(self, response: ClientResponse) -> AsyncIterator[bytes]:
        """Yield a body as it arrives. Raises ``UpstreamUnavailable`` or ``UpstreamTimeout``."""
        with self.translated():
            async for chunk in response.content.iter_any():
                self.counters.bytes_from_upstream += len(chunk)
                yield chunk

    async def read(self, response: ClientResponse, most: int) -> bytes:
        """Return some bytes of a body, ``most`` at the most, none at its end. Raises as ``chunks``.

        No more than ``READ_BUFFER`` may be asked for: aiohttp would buffer as much.
        """
        with self.translated():
            chunk = await response.content.read(most)
        self.counters.bytes_from_upstream += len(chunk)
        return chunk

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what aiohttp raises into errors of ours."""
        try:
            yield
        except TimeoutError as error:
            raise UpstreamTimeout(f"{self.name} does not answer in time") from error
        except ClientConnectorCertificateError as error:
            raise UpstreamUnavailable(
                f"{self.name}: certificate not trusted: {error.certificate_error}"
            ) from error
        except ClientConnectorError as error:
            raise UpstreamUnavailable(
                f"{self.name} cannot be reached: {error.os_error.strerror or error.os_error}"
            ) from error
        except (ClientError, OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise UpstreamUnavailable(f"{self.name}: {type(error).__name__}") from error

    def _next(self, response: ClientResponse) -> URL:
        with self.translated():
            target = response.url.join(URL(response.headers.get("Location", ""), encoded=True))
        downgraded = response.url.scheme == "https" and target.scheme != "https"
        if target.scheme not in ("http", "https") or not target.host or downgraded:
            raise UpstreamUnavailable(f"{self.name} redirects to an address that is not followed")
        self._guard.check(target.host)
        return target.with_fragment(None)


def client_context(name: str, tls: UpstreamTLS) -> ssl.SSLContext:
    """Return how an upstream's certificate is checked. Raises ``ConfigError``."""
    try:
        context = ssl.create_default_context()
        if tls.ca_file is not None:
            context.load_verify_locations(tls.ca_file)
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file, _no_password)
    except OSError as error:
        raise ConfigError(f"upstreams.{name}.tls: a file cannot be used: {error}") from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    """Answer for a key that is encrypted, where OpenSSL would ask on the terminal."""
    raise OSError("the key is encrypted")


def retry_after(response: ClientResponse) -> float | None:
    """Return ``Retry-After`` in seconds (RFC 9110 §10.2.3), bounded."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        wait = parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(wait, 0.0), MAX_RETRY_AFTER)
