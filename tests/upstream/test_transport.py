"""Redirects, HTTP proxies, and errors of the network, through real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fakes import content
from tests.fakes.faults import redirect
from tests.fakes.upstream import FakeUpstream
from tests.running import Start


async def test_redirects_that_are_not_followed(start: Start, upstream: FakeUpstream) -> None:
    image = upstream.add("library/app", content.image(1))
    proxy = await start()
    path = f"/v2/app/blobs/{image.layers[0]}"
    for location in ("ftp://127.0.0.1/x", "file:///etc/passwd", "http://", "\\\\x", None):
        rule = upstream.fault(redirect(location), kind="blob")
        answer = await proxy.get(path)
        assert answer.status == 502, location
        assert b"signature" not in answer.body
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
        monkeypatch.setenv("HTTP_PROXY", f"http://me:pw@127.0.0.1:{port}")
        monkeypatch.setenv("http_proxy", f"http://me:pw@127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        proxy = await start(upstreams={"far": {"url": "http://registry.invalid"}})
        assert (await proxy.get("/v2/far/app/manifests/latest")).status == 404
        [head] = seen
        assert head.startswith("GET http://registry.invalid/v2/app/manifests/latest HTTP/1.1")
        assert "Proxy-Authorization: Basic bWU6cHc=" in head
        assert (await proxy.get("/v2/app/manifests/latest")).status == 200, "NO_PROXY"
    assert "pw@" not in proxy.log.getvalue()
