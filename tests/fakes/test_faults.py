import asyncio
import gzip
import time

import aiohttp
import pytest

from tests.fakes import faults
from tests.fakes.pulling import BLOB, DIGEST, OTHER, blob, fetch, manifest, until_broken
from tests.fakes.upstream import FakeUpstream

# Rules


async def test_status_fault_is_served_n_times(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    rule = upstream.fail(503, retry_after=7, kind="blob", reference=DIGEST, times=2, after=1)
    responses = [(await fetch(session, blob()))[0] for _ in range(4)]
    assert [response.status for response in responses] == [200, 503, 503, 200]
    assert responses[1].headers["Retry-After"] == "7"
    assert (rule.used, upstream.count(kind="blob")) == (2, 4)
    assert (await fetch(session, manifest()))[0].status == 200


async def test_status_with_another_body(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.fault(faults.status(500, body=b"oops", headers={"X-Cache": "no"}), method="HEAD")
    upstream.fault(faults.body(b"<html>", "text/html"), kind="blob")
    response, _ = await fetch(session, manifest(), "HEAD")
    assert (response.status, response.headers["X-Cache"]) == (500, "no")
    response, body = await fetch(session, blob())
    assert (response.content_type, body) == ("text/html", b"<html>")
    upstream.heal()
    assert (await fetch(session, blob()))[1] == BLOB


async def test_head_unsupported(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fail(405, method="HEAD")
    assert (await fetch(session, manifest(), "HEAD"))[0].status == 405
    assert (await fetch(session, manifest()))[0].status == 200


async def test_headers(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(
        faults.digest_header(OTHER), faults.header("Content-Type", None), kind="manifest"
    )
    upstream.fault(faults.digest_header(None), kind="blob")
    response, _ = await fetch(session, manifest())
    assert response.headers["Docker-Content-Digest"] == OTHER
    assert "Content-Type" not in response.headers
    assert "Docker-Content-Digest" not in (await fetch(session, blob(), "HEAD"))[0].headers


@pytest.mark.parametrize("place", [0, -1])
async def test_corrupt(upstream: FakeUpstream, session: aiohttp.ClientSession, place: int) -> None:
    upstream.fault(faults.corrupt(place))
    _, body = await fetch(session, blob())
    assert [at for at in (0, -1) if body[at] != BLOB[at]] == [place]
    assert len(body) == len(BLOB)


async def test_gzipped(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.gzipped(asked=True), kind="manifest")
    upstream.fault(faults.gzipped(), kind="blob")
    response, body = await fetch(session, blob(), Accept_Encoding="identity")
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == BLOB
    response, _ = await fetch(session, manifest(), Accept_Encoding="identity")
    assert "Content-Encoding" not in response.headers
    response, _ = await fetch(session, manifest(), Accept_Encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"


async def test_chunked(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.chunked())
    for method, expected in (("GET", BLOB), ("HEAD", b"")):
        response, body = await fetch(session, blob(), method)
        assert "Content-Length" not in response.headers
        assert body == expected


async def test_no_ranges(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.no_ranges(), kind="blob")
    response, body = await fetch(session, blob(), Range="bytes=0-9")
    assert (response.status, body) == (200, BLOB)


# On the wire


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size", [0, 1000, 150_000])
async def test_truncate(
    upstream: FakeUpstream, session: aiohttp.ClientSession, size: int, *, reset: bool
) -> None:
    upstream.fault(faults.truncate(size, reset=reset), kind="blob", times=1)
    async with session.get(blob()) as response:
        assert response.content_length == len(BLOB)
        got, problem = await until_broken(response)
    assert got == BLOB[:size]
    assert isinstance(problem, aiohttp.ClientPayloadError)
    assert ("ConnectionResetError" in str(problem)) == reset
    assert upstream.requests[0].outcome == "cut"
    assert upstream.requests[0].sent == size
    assert (await fetch(session, blob()))[1] == BLOB
    assert upstream.bodies(DIGEST) == 2


async def test_truncated_chunks(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.chunked(), faults.truncate(1000))
    with pytest.raises(aiohttp.ClientPayloadError):
        await fetch(session, blob())


@pytest.mark.parametrize("reset", [False, True])
async def test_hang_up(
    upstream: FakeUpstream, session: aiohttp.ClientSession, *, reset: bool
) -> None:
    upstream.fault(faults.hang_up(reset=reset), reference=DIGEST)
    with pytest.raises(aiohttp.ClientConnectionError):
        await fetch(session, blob(), "PUT")
    assert (upstream.requests[0].status, upstream.requests[0].outcome) == (0, "cut")


async def test_announced_too_long(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.announce(+10), kind="blob")
    response, _ = await fetch(session, blob(), "HEAD")
    assert response.headers["Content-Length"] == str(len(BLOB) + 10)
    with pytest.raises(aiohttp.ClientPayloadError):
        await fetch(session, blob())


async def test_announced_too_short(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.announce(-10), kind="blob")
    reader, writer = await asyncio.open_connection(*upstream.host.split(":"))
    writer.write(f"GET {blob()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert f"Content-Length: {len(BLOB) - 10}".encode() in head
    assert body == BLOB


async def test_delay_and_rate(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.delay(0.1), kind="manifest")
    upstream.fault(faults.slow(1_000_000), kind="blob")
    start = time.monotonic()
    await fetch(session, manifest())
    between = time.monotonic()
    assert (await fetch(session, blob()))[1] == BLOB
    assert between - start >= 0.09
    assert time.monotonic() - between >= 0.18


async def test_hold(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    gate = upstream.hold(kind="blob")
    asked = [asyncio.create_task(fetch(session, blob())) for _ in range(3)]
    await upstream.until(lambda: upstream.count("GET", "blob") == 3)
    assert upstream.bodies(DIGEST) == 0
    assert not any(task.done() for task in asked)
    gate.set()
    assert [body for _, body in await asyncio.gather(*asked)] == [BLOB] * 3
    assert upstream.bodies(DIGEST) == 3


async def test_stall(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    release = upstream.stall(1000, kind="blob")
    async with session.get(blob()) as response:
        got = await response.content.readexactly(1000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.05)
        assert upstream.requests[0].sent == 1000
        assert upstream.requests[0].outcome == "open"
        release.set()
        assert got + await response.read() == BLOB


@pytest.mark.parametrize("place", [0, len(BLOB)])
async def test_stall_at_either_end(
    upstream: FakeUpstream, session: aiohttp.ClientSession, place: int
) -> None:
    release = upstream.stall(place, kind="blob")
    async with session.get(blob()) as response:
        await upstream.until(lambda: upstream.requests[0].sent == place)
        release.set()
        assert await response.read() == BLOB


async def test_client_leaves(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.stall(1000, kind="blob")
    async with session.get(blob()) as response:
        await response.content.readexactly(1000)
        response.close()
    await upstream.until(lambda: upstream.requests[0].outcome == "dropped")


async def test_stop_and_start_again(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.hold(kind="blob")
    held = asyncio.create_task(fetch(session, blob()))
    await upstream.until(lambda: upstream.count() == 1)
    await upstream.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await held
    with pytest.raises(aiohttp.ClientConnectorError):
        await fetch(session, manifest())
    url = upstream.url
    await upstream.start()
    assert upstream.url == url
    assert (await fetch(session, manifest()))[0].status == 200
    upstream.clear()
    assert upstream.requests == []
