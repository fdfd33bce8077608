"""HTTP to one upstream: connections, proxies, redirects, counters and translated errors.

``Authorization`` goes only to the origin that a request is for, never to where that redirects
(distribution-spec "Pulling blobs"). Messages never contain the query of a URL, which may hold a
signature.
"""

import asyncio
import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Final
from urllib.request import (  # type: ignore[attr-defined] # typeshed lacks the second
    getproxies_environment,
    proxy_bypass_environment,
)
from weakref import WeakSet

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    encode_basic_auth,
)
from yarl import URL

from proxy import VERSION
from proxy.core.errors import ConfigError, Overloaded, UpstreamTimeout, UpstreamUnavailable
from proxy.runtime import spans
from proxy.runtime.metrics import UpstreamCounters
from proxy.settings import Timeouts, UpstreamTLS
from proxy.upstream import hops
from proxy.upstream.connector import Connector, TooManyInterimError
from proxy.upstream.direct import DirectBody
from proxy.upstream.guard import Guard, GuardedResolver
from proxy.upstream.offline import OfflineSwitch
from proxy.upstream.redaction import Redactor

MAX_REDIRECTS: Final = 5
MAX_SMALL_BODY: Final = 64 * 1024
SMALL_BUFFER: Final = 64 * 1024
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """One HTTP request. aiohttp reads at most about twice ``buffer`` bytes of the body ahead."""

    method: str
    url: URL
    headers: dict[str, str] = field(default_factory=dict)
    buffer: int = SMALL_BUFFER


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request to a token server: a GET, or a POST of a ``form`` whose values may be secret."""

    url: URL
    authorization: str | None = field(default=None, repr=False)
    form: dict[str, str] | None = field(default=None, repr=False)


class Transport:
    """The connections to one upstream, whose base is ``url``. Close it when done."""

    def __init__(
        self,
        name: str,
        guard: Guard,
        context: ssl.SSLContext,
        timeouts: Timeouts,
        counters: UpstreamCounters,
    ) -> None:
        self.name: Final = name
        self.url: Final = guard.url
        self.counters: Final = counters
        self.redactor: Final = Redactor()
        self.offline: Final = OfflineSwitch()
        self._guard = guard
        self._responses: WeakSet[ClientResponse] = WeakSet()
        self._proxies = Proxies()
        guard.permit_proxies(self._proxies.by_scheme.values())
        self._session = ClientSession(
            connector=Connector(context, GuardedResolver(guard)),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": f"millpond/{VERSION}", "Accept-Encoding": "identity"},
            skip_auto_headers=("Accept",),
            timeout=ClientTimeout(
                total=None, sock_connect=timeouts.connect, sock_read=timeouts.idle
            ),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    @property
    def is_idle(self) -> bool:
        """No response is open."""
        return all(response.closed for response in self._responses)

    def is_own(self, response: ClientResponse) -> bool:
        """Return True if the registry itself responded, not a host that it redirected to."""
        return response.url.origin() == self.url.origin()

    async def send(self, request: HTTPRequest, authorization: str | None = None) -> ClientResponse:
        """Return the response after all redirects; the caller reads or closes it.

        Raises ``UpstreamUnavailable``, ``UpstreamTimeout`` or ``Overloaded``.
        """
        self.counters.upstream_requests += 1
        url = request.url
        for _ in range(MAX_REDIRECTS + 1):
            # aiohttp could follow redirects, but not ask the guard at each step.
            sent = dict(request.headers)
            with spans.child_span(
                request.method, spans.Kind.CLIENT, _attributes(request, url)
            ) as span:
                if url.origin() == request.url.origin():
                    sent |= hops.headers() | ({} if span is None else span.headers())
                    if authorization is not None:
                        sent["Authorization"] = authorization
                response = await self._request(replace(request, url=url, headers=sent))
                if span is not None:
                    span.add({"http.response.status_code": response.status})
            if response.status not in _REDIRECTS:
                return response
            await self.drain(response)
            url = self._redirect_target(response)
        raise UpstreamUnavailable(f"{self.name} redirects more than {MAX_REDIRECTS} times")

    async def fetch_token(self, request: TokenRequest) -> tuple[ClientResponse, bytes]:
        """Return a token server's response, never redirected, and its body. Raises as ``send``."""
        self._guard.check(request.url)
        self.counters.token_requests += 1
        authorization, form = request.authorization, request.form
        headers = {} if authorization is None else {"Authorization": authorization}
        for name, value in (form or {}).items():
            if name.endswith("_token"):
                self.redactor.remember(f"Bearer {value}")
        method = "GET" if form is None else "POST"
        asked = HTTPRequest(method, request.url, headers)
        with spans.child_span(
            f"{method} token", spans.Kind.CLIENT, _attributes(asked, asked.url)
        ) as span:
            response = await self._request(asked, form)
            if span is not None:
                span.add({"http.response.status_code": response.status})
            return response, await self._read_small(response)

    async def drain(self, response: ClientResponse) -> bytes:
        """Return a small body, read to its end so that the connection can be used again."""
        body = await self._read_small(response)
        self.counters.bytes_from_upstream += len(body)
        return body

    async def read(self, response: ClientResponse, most: int) -> bytes | memoryview:
        """Return 1 to ``most`` bytes of a body, none at its end. Raises as ``send``.

        ``most`` may not exceed ``READ_BUFFER``, because aiohttp would buffer as much. A long body
        from which as much is read goes through a ``DirectBody``.
        """
        with self.translate_errors(response.url.host):
            direct = DirectBody.of(response, most)
            chunk = await (response.content if direct is None else direct).read(most)
        self.counters.bytes_from_upstream += len(chunk)
        return chunk

    async def _read_small(self, response: ClientResponse) -> bytes:
        """Return a body, cut at 64 KiB. A longer one costs its connection."""
        body = bytearray()
        with self.translate_errors(response.url.host):
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_SMALL_BODY:
                    response.close()
                    break
        return bytes(body[:MAX_SMALL_BODY])

    async def _request(
        self, request: HTTPRequest, form: dict[str, str] | None = None
    ) -> ClientResponse:
        """Send one request and return the response to it, a redirect included."""
        if self.offline.is_forced:
            error = UpstreamUnavailable(f"{self.name} is offline, so it is not contacted")
            error.was_forwarded = False
            raise error
        url, headers = request.url, request.headers
        proxy, proxy_headers = self._proxies.route(url)
        for value in (headers.get("Authorization"), *proxy_headers.values()):
            if value is not None:
                self.redactor.remember(value)
        if url.scheme == "http":  # aiohttp sends proxy_headers for a tunnel only
            headers = {**headers, **proxy_headers}
        began = perf_counter()
        status: int | None = None
        try:
            with self.translate_errors(url.host):
                response = await self._session.request(
                    request.method,
                    url,
                    headers=headers,
                    data=form,
                    allow_redirects=False,
                    read_bufsize=request.buffer,
                    proxy=proxy,
                    proxy_headers=proxy_headers,
                )
            status = response.status
            self._responses.add(response)
            return response
        finally:
            self.counters.upstream_answered(status, perf_counter() - began)

    def _redirect_target(self, response: ClientResponse) -> URL:
        """Return the target of a redirect. Raises ``UpstreamUnavailable`` if not permitted."""
        with self.translate_errors():
            target = response.url.join(URL(response.headers.get("Location", ""), encoded=True))
        is_downgrade = response.url.scheme == "https" and target.scheme != "https"
        if target.scheme not in ("http", "https") or not target.host or is_downgrade:
            raise UpstreamUnavailable(f"{self.name} redirects to an address that is not followed")
        self._guard.check(target)
        return target

    @contextmanager
    def translate_errors(self, host: str | None = None) -> Iterator[None]:
        """Replace errors of aiohttp by ours, each with the ``host`` that failed."""
        try:
            yield
        except (ClientError, OSError, asyncio.IncompleteReadError, ValueError) as error:
            translated = self._translate(error)
            translated.host = host
            raise translated from error

    def _translate(self, error: Exception) -> UpstreamTimeout | UpstreamUnavailable | Overloaded:
        match error:
            case TimeoutError():
                return UpstreamTimeout(f"{self.name} does not answer in time")
            case TooManyInterimError():
                reason = "sends interim responses but no answer"
                return UpstreamUnavailable(f"{self.name} {reason}")
            case ClientConnectorCertificateError():
                reason = self.redactor.redact(str(error.certificate_error))
                return UpstreamUnavailable(f"{self.name}: certificate not trusted: {reason}")
            case ClientConnectorError() if error.os_error.errno in _OUT_OF_DESCRIPTORS:
                return Overloaded("file descriptors have run out; try again")
            case ClientConnectorError():
                reason = str(error.os_error.strerror or error.os_error)
                return UpstreamUnavailable(f"{self.name} cannot be reached: {reason}")
            case _:
                return UpstreamUnavailable(f"{self.name}: {type(error).__name__}")


def _attributes(request: HTTPRequest, url: URL) -> spans.Attributes:
    """Return the attributes of a request's span; its query may hold a signature."""
    return {
        "http.request.method": request.method,
        "server.address": url.host,
        "server.port": url.port,
        "url.full": str(url.with_query(None).with_user(None)),
    }


class Proxies:
    """The HTTP proxies of ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``, read once.

    aiohttp's own ``trust_env`` also reads ``~/.netrc``, whose credentials are not meant for us.
    """

    def __init__(self) -> None:
        self._environment = getproxies_environment()
        self.by_scheme: Final = {
            scheme: URL(address if "://" in address else f"http://{address}")
            for scheme, address in self._environment.items()
            if scheme in ("http", "https")
        }

    def route(self, url: URL) -> tuple[URL | None, dict[str, str]]:
        """Return the proxy that leads to ``url``, None for a direct way, and headers for it."""
        proxy = self.by_scheme.get(url.scheme)
        authority = f"{url.host}:{url.port}"
        if proxy is None or proxy_bypass_environment(authority, self._environment):
            return None, {}
        if proxy.user is None:
            return proxy, {}
        credentials = encode_basic_auth(proxy.user, proxy.password or "")
        return proxy.with_user(None), {"Proxy-Authorization": credentials}


def client_context(name: str, tls: UpstreamTLS) -> ssl.SSLContext:
    """Return the TLS settings for connections to an upstream. Raises ``ConfigError``."""
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
    """Refuse an encrypted key, for which OpenSSL would ask on the terminal."""
    raise OSError("the key is encrypted")
