import asyncio
import os
import ssl
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector

from proxy.content.downloads import Reader
from proxy.repository.results import LocalBlob
from tests.fakes import content
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

BIG = content.image(3, layers=(20_000_000,))
[LAYER] = BIG.layers


async def test_https_and_a_renewed_certificate(
    start: Start, upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.web.certificate.POLL_SECONDS", 0.05)
    upstream.add("library/app", BIG)
    first, second = (certificate(folder(tmp_path, name)) for name in ("one", "two"))
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(first.authority.read_bytes())
    key.write_bytes(first.authority.with_name("key.pem").read_bytes())
    proxy = await start(tls={"cert_file": str(cert), "key_file": str(key)})

    async def pulled(authority: Path) -> bool:
        context = ssl.create_default_context(cafile=authority)
        async with ClientSession(connector=TCPConnector(ssl=context)) as client:
            url = f"https://{proxy.app.address}/v2/app/blobs/{LAYER}"
            async with client.get(url) as response:
                return await response.read() == BIG.blobs[LAYER]

    assert await pulled(first.authority)
    assert await pulled(first.authority)
    cert.write_text("broken")
    await until(lambda: "certificate not renewed" in proxy.log.getvalue())
    assert await pulled(first.authority), "a broken pair is left alone"
    cert.write_bytes(second.authority.read_bytes())
    key.write_bytes(second.authority.with_name("key.pem").read_bytes())
    await until(lambda: "certificate renewed" in proxy.log.getvalue())
    assert await pulled(second.authority)


SPANS = (
    (0, 1),
    (1, 131_073),
    (131_073, 300_000),
    (5_000_001, 12_345_678),
    (19_999_999, 20_000_000),
)


@pytest.mark.parametrize("has_file", [True, False], ids=["file", "no file"])
@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_several_ranges_byte_for_byte(
    start: Start,
    upstream: FakeUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    secure: bool,
    warm: bool,
    has_file: bool,
) -> None:
    """Of one byte, of more than one write, at odd places; from a blob and from a download.

    Storage need not have files: what has no descriptor is read and written.
    """
    if not has_file:
        monkeypatch.setattr(LocalBlob, "fd", None)
        monkeypatch.setattr(Reader, "fd", None)
        monkeypatch.setattr(os, "sendfile", None)
    upstream.add("library/app", BIG)
    made = certificate(folder(tmp_path, "one"))
    key = made.authority.with_name("key.pem")
    tls = {"tls": {"cert_file": str(made.authority), "key_file": str(key)}} if secure else {}
    proxy = await start(**tls)
    connector = TCPConnector(ssl=ssl.create_default_context(cafile=made.authority))
    url = f"{'https' if secure else 'http'}://{proxy.app.address}/v2/app/blobs/{LAYER}"
    wanted = ",".join(f"{first}-{stop - 1}" for first, stop in SPANS)
    data = BIG.blobs[LAYER]
    async with ClientSession(connector=connector) as client:
        if warm:
            async with client.get(url) as response:
                assert await response.read() == data
            await proxy.settled()
        for _ in range(2):
            async with client.get(url, headers={"Range": f"bytes={wanted}"}) as response:
                assert response.status == 206
                boundary = response.headers["Content-Type"].partition("boundary=")[2]
                body = await response.read()
            expected = b"".join(
                (
                    f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n"
                    f"Content-Range: bytes {first}-{stop - 1}/{len(data)}\r\n\r\n"
                ).encode()
                + data[first:stop]
                for first, stop in SPANS
            )
            assert body == expected + f"\r\n--{boundary}--\r\n".encode()
            assert response.headers["Content-Length"] == str(len(body))
        for first, stop in SPANS:
            span = {"Range": f"bytes={first}-{stop - 1}"}
            async with client.get(url, headers=span) as response:
                assert (response.status, await response.read()) == (206, data[first:stop])


def folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


async def test_many_slow_readers_do_not_stall_the_loop(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", BIG)
    host, port = proxy.app.address.split(":")
    await proxy.get(f"/v2/app/blobs/{LAYER}")
    await proxy.settled()
    writers = []
    for _ in range(20):
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET /v2/app/blobs/{LAYER} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        writers.append(writer)
    for _ in range(20):
        async with asyncio.timeout(20):
            assert (await proxy.get("/v2/")).status == 200
    for writer in writers:
        writer.transport.abort()


async def test_shutdown_lets_a_running_response_finish(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(shutdown_grace="60s")
    upstream.add("library/app", BIG)
    release = upstream.stall(1_000_000, kind="blob")
    async with ClientSession(f"http://{proxy.app.address}") as client:
        response = await client.get(f"/v2/app/blobs/{LAYER}")
        closing = asyncio.create_task(proxy.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
        release.set()
        assert await response.read() == BIG.blobs[LAYER]
        await closing
    assert proxy.held() == {LAYER}
    assert not proxy.spooled()


async def test_shutdown_ends_after_its_grace_and_leaves_no_half_file(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(shutdown_grace="100ms")
    upstream.add("library/app", BIG)
    release = upstream.stall(1_000_000, kind="blob")
    async with ClientSession(f"http://{proxy.app.address}") as client:
        response = await client.get(f"/v2/app/blobs/{LAYER}")
        async with asyncio.timeout(30):
            await proxy.close()
        response.close()
    release.set()
    assert not proxy.held()
    assert not proxy.spooled()
