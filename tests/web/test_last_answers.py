"""Answers after which the connection is closed: the client receives them whatever it still sends."""

import asyncio
import ssl
import subprocess

import pytest

from proxy.web import closing
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.process import command
from tests.running import Proxy, until

IMAGE = content.image(1, layers=(3_000_000,))
[LAYER] = IMAGE.layers
MANIFEST = "/v2/library/app/manifests/latest"
MORE = b"x" * 300_000  # more than one read of the server takes


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)


def hello(protocols: list[str]) -> bytes:
    """Return a real ClientHello."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="cache.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


USUAL = hello(["h2", "http/1.1"])
LONG = hello([f"protocol-{number}" for number in range(400)])  # several kilobytes


async def said(proxy: Proxy, *pieces: bytes) -> bytes:
    """Send pieces, each in a segment of its own, and return all that comes back until the end."""
    host, port = proxy.app.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(30):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.read()
    finally:
        writer.transport.abort()


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 5, 100, 10_000])
async def test_t57_a_tls_hello_on_the_plain_port_is_answered(proxy: Proxy, size: int) -> None:
    for sent in (USUAL, LONG) * 25:
        answer = await said(proxy, *in_pieces(sent, size))
        head, _, text = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer
        assert b"Content-Type: text/plain" in head
        assert f"Content-Length: {len(text)}".encode() in head
        assert b"Connection: close" in head
        assert b"http" in text
    assert "rror" not in proxy.log.getvalue()
    assert (await proxy.get("/v2/")).status == 200


async def test_t57_a_tls_hello_is_answered_under_load(proxy: Proxy) -> None:
    assert (await proxy.get(MANIFEST)).status == 200
    done = asyncio.Event()

    async def load() -> int:
        pulls = 0
        while not done.is_set():
            assert (await proxy.get(MANIFEST)).body == IMAGE.manifest
            assert (await proxy.get(f"/v2/library/app/blobs/{LAYER}")).status == 200
            pulls += 2
        return pulls

    others = [asyncio.create_task(load()) for _ in range(4)]
    for _ in range(10):
        answers = await asyncio.gather(
            *(said(proxy, *in_pieces(LONG if place % 2 else USUAL, 700)) for place in range(30))
        )
        assert {answer[:13] for answer in answers} == {b"HTTP/1.1 400 "}
    done.set()
    assert all(await asyncio.gather(*others))


@pytest.mark.parametrize(
    "argv",
    [
        ("curl", "--silent", "--show-error", "--insecure", "--max-time", "20", "https://{}/v2/"),
        ("openssl", "s_client", "-connect", "{}"),
    ],
    ids=["curl", "openssl"],
)
async def test_t57_tls_clients_see_that_it_is_http(proxy: Proxy, argv: tuple[str, ...]) -> None:
    """An answer in HTTP is what they call a wrong version; a closed connection is something else."""
    line = [command(argv[0]), *(part.format(proxy.app.address) for part in argv[1:])]

    async def once() -> bytes:
        process = await asyncio.create_subprocess_exec(
            *line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
        return output

    for _ in range(10):
        for output in await asyncio.gather(*(once() for _ in range(5))):
            assert b"wrong version number" in output or b"packet length" in output, output


async def test_t57_a_client_that_never_stops_sending_is_cut_off(proxy: Proxy) -> None:
    """It gets its answer; what it sends is discarded up to a bound, and then it has to go."""
    host, port = proxy.app.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(USUAL)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    sent = await sent_until_cut_off(writer, MORE)
    assert sent < closing.MAX_DISCARDED + 32 * 1024 * 1024, "what both kernels hold comes on top"
    writer.transport.abort()


async def test_t57_a_client_that_stays_silent_is_cut_off(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "LINGER_SECONDS", 0.2)
    host, port = proxy.app.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(USUAL)
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    await sent_until_cut_off(writer, b"x")
    writer.transport.abort()


async def sent_until_cut_off(writer: asyncio.StreamWriter, piece: bytes) -> int:
    """Send pieces until the other end closes; return how many bytes that were."""
    sent = 0
    async with asyncio.timeout(30):
        try:
            while True:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                await asyncio.sleep(0.001)
        except ConnectionError:
            return sent


NOT_HTTP = {
    "garbage": b"\x00\x01\x02\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "long line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    "second of two": b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03\x01 no HTTP\r\n\r\n",
}


@pytest.mark.parametrize("what", NOT_HTTP)
async def test_t57_what_is_no_http_is_answered_while_more_comes(proxy: Proxy, what: str) -> None:
    for size in (300, 1_000_000):
        for _ in range(25):
            answer = await said(proxy, *in_pieces(NOT_HTTP[what], size), MORE, MORE)
            assert b"HTTP/1.1 400 " in answer or b"HTTP/1.0 400 " in answer, answer[:200]
            assert answer.endswith(b"}"), "the error document is whole"


UPLOADS = {
    "length": b"Content-Length: 6000000\r\n\r\n" + MORE * 20,
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n" + (b"493e0\r\n" + MORE + b"\r\n") * 20 + b"0\r\n\r\n",
    "expect": b"Expect: 100-continue\r\nContent-Length: 300000\r\n\r\n" + MORE,
    "close": b"Connection: close\r\nContent-Length: 6000000\r\n\r\n" + MORE * 20,
    "broken": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + MORE * 20,
}  # fmt: skip


@pytest.mark.parametrize("what", UPLOADS)
@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_t57_a_refused_upload_is_answered(proxy: Proxy, method: str, what: str) -> None:
    path = "/v2/library/app/blobs/uploads/"
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode()
    for _ in range(10):
        host, port = proxy.app.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(30):
            writer.write(head + UPLOADS[what])
            await writer.drain()  # the whole body goes first, as simple clients do it
            answer = await reader.readuntil(b"\r\n\r\n")
        assert answer[9:13] in {b"405 ", b"400 "}, answer
        writer.transport.abort()
    assert "Unhandled" not in proxy.log.getvalue()
    await until(lambda: not proxy.stats["downloads"])
