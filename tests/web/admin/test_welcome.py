"""The page at ``/``, and the ``Server`` header of every answer."""

import asyncio
import re
from html.parser import HTMLParser

import pytest
from aiohttp import ClientSession, UnixConnector

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy

IMAGE = content.image(1)
LATEST = "/v2/app/manifests/latest"
BLOB = f"/v2/app/blobs/{IMAGE.layers[0]}"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


class Links(HTMLParser):
    """Collects what a page leads to or loads."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(str(value))
            elif name in {"src", "href", "action", "data"}:
                self.loaded.append(str(value))
        assert tag not in {"script", "iframe", "object", "form"}


async def test_t71_the_root_answers_people_in_a_browser(proxy: Proxy) -> None:
    answer = await proxy.get("/", Accept=BROWSER)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    page = Links()
    page.feed(answer.body.decode())
    assert not page.loaded, "nothing is loaded from elsewhere"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"pull-through cache" in answer.body
    for link in page.links:
        assert (await proxy.get(link)).status == 200, link


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
async def test_the_root_answers_others_in_text(
    proxy: Proxy, upstream: FakeUpstream, accept: str
) -> None:
    answer = await proxy.get("/", Accept=accept)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert b"/-/stats" in answer.body
    assert b"<" not in answer.body
    head = await proxy.head("/?x=1", Accept=accept)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(answer.body))
    assert not upstream.requests


async def test_the_root_cannot_be_written(proxy: Proxy) -> None:
    answer = await proxy.ask("POST", "/")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


async def test_every_answer_names_the_server(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    for path in (
        "/", "/favicon.ico", "/v2/", "/v1/", "/metrics", "/-/stats", "/-/healthz", "/-/readyz",
        "/-/none", "/-/images", LATEST, LATEST, LATEST, BLOB, "/v2/app/manifests/none",
        "/v2/app/tags/list", "/v2/_catalog", "/v2/UPPER/manifests/x",
        f"/v2/app/referrers/{IMAGE.digest}",
    ):  # fmt: skip
        for method in ("GET", "HEAD", "POST"):
            answer = await proxy.ask(method, path)
            assert answer.headers.getall("Server") == ["millpond"], (method, path)
    await proxy.settled()
    for sent in ({"Range": "bytes=1-2"}, {"Range": "bytes=9999-"}, {"If_None_Match": "*"}):
        answer = await proxy.get(BLOB, **sent)
        assert answer.headers.getall("Server") == ["millpond"], sent


async def test_every_answer_on_the_admin_socket_names_the_server(proxy: Proxy) -> None:
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession("http://millpond", connector=connector) as operator:
        for path in ("/-/images", "/-/pins", "/-/evict?bytes=1", "/-/none", "/-/stats", "/v2/"):
            async with operator.get(path) as response:
                assert response.headers.getall("Server") == ["millpond"], path


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_an_answer_to_what_is_no_request_names_the_server(proxy: Proxy, sent: bytes) -> None:
    host, port = proxy.app.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent)
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()
    assert re.findall(rb"(?mi)^Server: (.*)\r$", head) == [b"millpond"]


async def test_an_unforeseen_failure_names_the_server(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("proxy.app.Admin._answer", broken)
    answer = await proxy.get("/-/stats?x=1")
    other = await proxy.get("/-/healthz")
    assert answer.headers.getall("Server") == other.headers.getall("Server") == ["millpond"]
    assert other.status == 500
