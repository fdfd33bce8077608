"""Redirects, HTTP proxies, and errors of the network, through real sockets."""

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientConnectorCertificateError, ClientConnectorError, ClientPayloadError
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from proxy.core.errors import (
    ConfigError,
    Overloaded,
    RegistryError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.settings import UpstreamTLS
from proxy.upstream.connector import TooManyInterimError
from proxy.upstream.transport import (
    MAX_REDIRECTS,
    MAX_SMALL_BODY,
    HTTPRequest,
    TokenRequest,
    Transport,
    client_context,
)
from tests.fakes import content
from tests.fakes.faults import body, redirect, status
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.running import Start
from tests.upstream import wiring

KEY = ConnectionKey(
    host="cdn.example.com",
    port=443,
    is_ssl=True,
    ssl=True,
    proxy=None,
    proxy_auth=None,
    proxy_headers_hash=None,
)


@pytest.fixture
async def transport(upstream: FakeUpstream) -> AsyncIterator[Transport]:
    made = wiring.transport(upstream.url)
    yield made
    await made.close()


def tags(upstream: FakeUpstream) -> HTTPRequest:
    return HTTPRequest("GET", URL(f"{upstream.url}/v2/library/app/tags/list"))


@pytest.mark.parametrize("count", [MAX_REDIRECTS, MAX_REDIRECTS + 1])
async def test_redirects_are_followed_a_few_times(
    transport: Transport, upstream: FakeUpstream, count: int
) -> None:
    upstream.add("library/app", content.image(1))
    upstream.fault(redirect("/v2/library/app/tags/list?n=5"), times=count)
    if count > MAX_REDIRECTS:
        with pytest.raises(UpstreamUnavailable, match="more than"):
            await transport.send(tags(upstream))
        assert len(upstream.requests) == MAX_REDIRECTS + 1
        return
    response = await transport.send(tags(upstream), "Bearer abc")
    assert response.status == 200
    await transport.drain(response)
    sent = [request.headers.get("Authorization") for request in upstream.requests]
    assert sent == ["Bearer abc"] * (count + 1), "it is the same origin"
    assert transport.counters.upstream_requests == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_t26_another_origin_gets_no_authorization(
    transport: Transport, upstream: FakeUpstream, code: int
) -> None:
    async with FakeUpstream() as other:
        upstream.fault(redirect(f"{other.url}/v2/library/app/tags/list#x", code))
        other.fault(redirect(f"{upstream.url}/v2/", code))
        upstream.fault(status(200), kind="ping")
        other_request = HTTPRequest("GET", tags(upstream).url, {"Accept": "text/plain"})
        upstream.rules[0].times = 1
        response = await transport.send(other_request, "Bearer abc")
        assert transport.is_own(response)
        await transport.drain(response)
        [there] = other.requests
        assert "Authorization" not in there.headers
        assert there.headers["Accept"] == "text/plain"
        assert there.headers["Accept-Encoding"] == "identity"
        assert there.headers["User-Agent"].startswith("millpond/")


async def test_is_idle_while_no_response_is_open(
    transport: Transport, upstream: FakeUpstream
) -> None:
    upstream.fault(status(200, body=b"x" * (1 << 20)))
    assert transport.is_idle
    response = await transport.send(tags(upstream))
    assert not transport.is_idle
    response.close()
    assert transport.is_idle


@pytest.mark.parametrize("excess", [0, 1])
async def test_a_small_body_leaves_its_connection_open(
    transport: Transport, upstream: FakeUpstream, excess: int
) -> None:
    upstream.fault(status(400, body=b"x" * (MAX_SMALL_BODY + excess)))
    response = await transport.send(tags(upstream))
    drained = await transport.drain(response)
    assert drained == b"x" * MAX_SMALL_BODY
    assert transport.counters.bytes_from_upstream == MAX_SMALL_BODY
    response = await transport.send(tags(upstream))
    response.close()
    assert transport.is_idle


async def test_bytes_are_counted_and_read_in_bounds(
    transport: Transport, upstream: FakeUpstream
) -> None:
    upstream.fault(status(200, body=b"x" * 100_000))
    response = await transport.send(tags(upstream))
    first = await transport.read(response, 10)
    assert first == b"x" * 10
    rest = b""
    while chunk := await transport.read(response, 1 << 20):
        rest += chunk
    assert len(rest) == 99_990
    assert transport.counters.bytes_from_upstream == 100_000


async def test_a_token_server_is_not_followed_and_not_counted_as_content(
    transport: Transport, upstream: FakeUpstream
) -> None:
    upstream.fault(redirect(f"{upstream.url}/v2/"), body(b"elsewhere"), kind="token")
    url = URL(f"{upstream.token_url}/token")
    response, said = await transport.fetch_token(TokenRequest(url, "Basic abc"))
    assert (response.status, said) == (307, b"elsewhere")
    assert upstream.token_requests[0].headers["Authorization"] == "Basic abc"
    counters = transport.counters
    assert (counters.token_requests, counters.upstream_requests) == (1, 0)
    assert counters.bytes_from_upstream == 0


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (TimeoutError(), UpstreamTimeout, "does not answer in time"),
        (TooManyInterimError(), UpstreamUnavailable, "interim responses"),
        (ClientConnectorError(KEY, OSError(errno.EMFILE, "many")), Overloaded, "descriptors"),
        (ClientConnectorError(KEY, OSError(errno.ENFILE, "many")), Overloaded, "descriptors"),
        (ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, "no")), UpstreamUnavailable, "lab cannot be reached: no"),
        (ClientConnectorError(KEY, OSError(None, "unknown")), UpstreamUnavailable, "reached: unknown"),
        (ClientConnectorCertificateError(KEY, ValueError("wrong abcdefgh.com")), UpstreamUnavailable, "not trusted: wrong [redacted].com"),
        (ClientPayloadError("https://x/?signature=s"), UpstreamUnavailable, "lab: ClientPayloadError"),
        (ConnectionResetError("x"), UpstreamUnavailable, "lab: ConnectionResetError"),
        (asyncio.IncompleteReadError(b"", 1), UpstreamUnavailable, "lab: IncompleteReadError"),
        (ValueError("x"), UpstreamUnavailable, "lab: ValueError"),
    ],
)  # fmt: skip
def test_errors_of_the_network(
    transport: Transport, error: Exception, expected: type[RegistryError], text: str
) -> None:
    transport.redactor.remember("Bearer abcdefgh")
    with pytest.raises(RegistryError) as raised, transport.translate_errors("cdn.example.com"):
        raise error
    assert type(raised.value) is expected
    assert text in raised.value.message
    assert "signature" not in raised.value.message
    assert raised.value.host == "cdn.example.com"
    assert raised.value.__cause__ is error


def test_a_bug_is_not_translated(transport: Transport) -> None:
    with pytest.raises(ZeroDivisionError), transport.translate_errors():
        raise ZeroDivisionError


def test_certificates_are_checked_unless_the_operator_says_otherwise(tmp_path: Path) -> None:
    context = client_context("lab", UpstreamTLS())
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    context = client_context("lab", UpstreamTLS(verify=False))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    with pytest.raises(ConfigError, match=r"upstreams\.lab\.tls"):
        client_context("lab", UpstreamTLS(ca_file=tmp_path / "none"))


def test_the_authorities_of_the_system_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path).authority))
    context = client_context("lab", UpstreamTLS())
    assert len(context.get_ca_certs()) == 1


async def test_redirects_that_are_not_followed(start: Start, upstream: FakeUpstream) -> None:
    image = upstream.add("library/app", content.image(1))
    proxy = await start()
    path = f"/v2/app/blobs/{image.layers[0]}"
    elsewhere = ("ftp://127.0.0.1/x", "file:///etc/passwd", "https://")
    for location in (*elsewhere, "http://", "\\\\x", None):
        rule = upstream.fault(redirect(location), kind="blob")
        answer = await proxy.get(path)
        assert answer.status == 502, location
        assert b"signature" not in answer.body
        assert (b"an address that is not followed" in answer.body) == (location in elsewhere)
        assert rule.used
        upstream.heal()
    assert (await proxy.get(path)).status == 200


@asynccontextmanager
async def http_proxy(seen: list[str]) -> AsyncIterator[int]:
    """Answer every request as a forward proxy whose upstream knows no manifest."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_http_proxies_of_the_environment_are_used(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add("library/app", content.image(1))
    seen: list[str] = []
    async with http_proxy(seen) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:pw@localhost:{port}")
        monkeypatch.setenv("http_proxy", f"http://me:pw@localhost:{port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        proxy = await start(upstreams={"far": {"url": "http://registry.invalid"}})
        assert (await proxy.get("/v2/far/app/manifests/latest")).status == 404
        [head] = seen
        assert head.startswith("GET http://registry.invalid/v2/app/manifests/latest HTTP/1.1")
        assert "Proxy-Authorization: Basic bWU6cHc=" in head
        assert (await proxy.get("/v2/app/manifests/latest")).status == 200, "NO_PROXY"
    assert "pw@" not in proxy.log.getvalue()
