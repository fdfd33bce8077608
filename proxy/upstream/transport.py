"""HTTP to one upstream: sends, follows redirects, counts, and turns library errors into ours.

``Authorization`` goes to the upstream's own origin only (distribution-spec "Redirects"). Addresses
with signatures in their query never reach a message.
"""

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final, NamedTuple
from weakref import WeakSet

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
)
from yarl import URL

from proxy.core.errors import (
    ConfigError,
    Overloaded,
    UpstreamFailure,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.runtime.metrics import UpstreamCounters
from proxy.settings import Timeouts, UpstreamTLS
from proxy.upstream.auth import TokenAnswer
from proxy.upstream.connector import Connector, TooManyInterimError
from proxy.upstream.guard import Guard, GuardedResolver
from proxy.upstream.headers import retry_after
from proxy.upstream.proxies import Proxies
from proxy.upstream.redaction import Redactor

MAX_REDIRECTS: Final = 5
MAX_ERROR_BODY: Final = 64 * 1024
READ_BUFFER: Final = 1024 * 1024
SMALL_BUFFER: Final = 64 * 1024
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
        self._responses: WeakSet[ClientResponse] = WeakSet()
        self._proxies = Proxies()
        self.redactor = Redactor()
        trust.guard.permit_dialling(self._proxies.addresses)
        self._session = ClientSession(
            connector=Connector(trust.context, GuardedResolver(trust.guard)),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
            skip_auto_headers=("Accept",),
            timeout=ClientTimeout(
                total=None, sock_connect=timeouts.connect, sock_read=timeouts.idle
            ),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def send(
        self,
        method: str,
        url: URL,
        headers: dict[str, str],
        authorization: str | None,
        *,
        buffer: int = SMALL_BUFFER,
    ) -> ClientResponse:
        """Return the answer behind all redirects; its caller reads or closes it.

        aiohttp reads ``buffer`` bytes ahead, about twice over.

        Raises ``UpstreamUnavailable`` or ``UpstreamTimeout``.
        """
        origin = url.origin()
        self.counters.upstream_requests += 1
        for _ in range(MAX_REDIRECTS + 1):
            sent = dict(headers)
            if authorization is not None and url.origin() == origin:
                sent["Authorization"] = authorization
            response = await self._request(method, url, sent, buffer)
            if response.status not in _REDIRECTS:
                return response
            await self.drain(response)
            url = self._next(response)
        raise UpstreamUnavailable(f"{self.name} redirects more than {MAX_REDIRECTS} times")

    async def fetch_token(self, url: URL, authorization: str | None) -> TokenAnswer:
        """Return what a token server says. Raises ``UpstreamFailure``."""
        self._guard.check(url)
        self.counters.token_requests += 1
        headers = {} if authorization is None else {"Authorization": authorization}
        response = await self._request("GET", url, headers, SMALL_BUFFER)
        body = await self._small(response)
        return TokenAnswer(response.status, body, retry_after(response.headers))

    async def drain(self, response: ClientResponse) -> bytes:
        """Read a small body to its end, so that the connection can serve again; return it."""
        body = await self._small(response)
        self.counters.bytes_from_upstream += len(body)
        return body

    async def _request(
        self, method: str, url: URL, headers: dict[str, str], buffer: int
    ) -> ClientResponse:
        via = self._proxies.to(url)
        proxy_headers = via.get("proxy_headers", {})
        for value in (headers.get("Authorization"), *proxy_headers.values()):
            if value is not None:
                self.redactor.note(value)
        if url.scheme == "http":  # inside a tunnel, aiohttp sends them to the proxy only
            headers = {**headers, **proxy_headers}
        began = perf_counter()
        status: int | None = None
        try:
            with self._asking(url.host):
                response = await self._session.request(
                    method, url, headers=headers, allow_redirects=False, read_bufsize=buffer, **via
                )
            status = response.status
            self._responses.add(response)
            return response
        finally:
            self.counters.upstream_answered(status, perf_counter() - began)

    @property
    def is_idle(self) -> bool:
        """No response is being read."""
        return all(response.closed for response in self._responses)

    async def _small(self, response: ClientResponse) -> bytes:
        """Return a body of up to 64 KiB; a larger one is cut and its connection closed."""
        body = bytearray()
        with self._asking(response.url.host):
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_ERROR_BODY:
                    response.close()
                    break
        return bytes(body[:MAX_ERROR_BODY])

    async def chunks(self, response: ClientResponse) -> AsyncIterator[bytes]:
        """Yield a body as it arrives. Raises ``UpstreamUnavailable`` or ``UpstreamTimeout``."""
        with self._asking(response.url.host):
            async for chunk in response.content.iter_any():
                self.counters.bytes_from_upstream += len(chunk)
                yield chunk

    async def read(self, response: ClientResponse, most: int) -> bytes:
        """Return some bytes of a body, ``most`` at the most, none at its end. Raises as ``chunks``.

        No more than ``READ_BUFFER`` may be asked for: aiohttp would buffer as much.
        """
        with self._asking(response.url.host):
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
        except TooManyInterimError as error:
            raise UpstreamUnavailable(
                f"{self.name} sends interim responses but no answer"
            ) from error
        except ClientConnectorCertificateError as error:
            raise UpstreamUnavailable(
                f"{self.name}: certificate not trusted: "
                f"{self.redactor.clean(str(error.certificate_error))}"
            ) from error
        except ClientConnectorError as error:
            if error.os_error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of upstream's
                raise Overloaded("file descriptors are short; try again") from error
            raise UpstreamUnavailable(
                f"{self.name} cannot be reached: {error.os_error.strerror or error.os_error}"
            ) from error
        except (ClientError, OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise UpstreamUnavailable(f"{self.name}: {type(error).__name__}") from error

    @contextmanager
    def _asking(self, host: str | None) -> Iterator[None]:
        """Translate errors as ``translated`` does, and note in them which host failed."""
        try:
            with self.translated():
                yield
        except UpstreamFailure as error:
            error.host = host
            raise

    def _next(self, response: ClientResponse) -> URL:
        with self.translated():
            target = response.url.join(URL(response.headers.get("Location", ""), encoded=True))
        downgraded = response.url.scheme == "https" and target.scheme != "https"
        if target.scheme not in ("http", "https") or not target.host or downgraded:
            raise UpstreamUnavailable(f"{self.name} redirects to an address that is not followed")
        self._guard.check(target)
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
