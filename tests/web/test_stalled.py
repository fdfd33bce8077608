"""Clients that request and do not read: their cost, and when they are disconnected."""

import asyncio
import re
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector

from tests.fakes import content
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.parts import millpond
from tests.parts.millpond import Millpond
from tests.running import Proxy, Start, until

REPO = "library/app"
BIG = content.oversized(3_000_000)  # its manifest
LAYERED = content.image(1, layers=(20_000_000,))
[LAYER] = LAYERED.layers
MANIFEST = f"/v2/{REPO}/manifests/latest"
BLOB = f"/v2/{REPO}/blobs/{LAYER}"
CLIENTS = 300
ROOM = 64 * 1024 * 1024


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add(REPO, BIG)
    upstream.add(REPO, LAYERED, tags=["layered"])


def files_for_all() -> None:
    """Let this process open a socket for each client."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))


@contextmanager
def crowd(port: int, requests: list[bytes], context: ssl.SSLContext | None) -> Iterator[None]:
    """Clients that each send a request and read nothing of the answer, with small buffers."""
    files_for_all()
    with ExitStack() as stack:
        for request in requests:
            plain = stack.enter_context(socket.socket())
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.settimeout(30)
            plain.connect(("127.0.0.1", port))
            if context is None:
                plain.sendall(request)
                continue
            plain = stack.enter_context(context.wrap_socket(plain))
            plain.sendall(request)
        yield


def get(path: str, *lines: str) -> bytes:
    rest = "".join(f"{line}\r\n" for line in ("Host: cache", *lines))
    return f"GET {path} HTTP/1.1\r\n{rest}\r\n".encode()


def resident(proxy: Millpond) -> int:
    """Return the bytes of RAM that the process has."""
    status = Path(f"/proc/{proxy.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


async def served(client: ClientSession, wanted: int) -> None:
    """Return when so many requests have been answered, as far as they go, and one more is."""
    async with asyncio.timeout(120):
        while True:
            async with client.get("/-/stats", ssl=False) as answer:
                if (await answer.json())["total"]["requests"] >= wanted:
                    return
            await asyncio.sleep(0.05)


async def growth(upstream: FakeUpstream, requests: list[bytes], **extra: object) -> int:
    """Return by how many bytes the real program grows under clients that do not read."""
    is_tls = "tls" in extra
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    paths = sorted({request.split()[1].decode() for request in requests})
    manager = millpond.running(upstream.url, extra=extra)
    program = await asyncio.to_thread(manager.__enter__)
    try:
        async with ClientSession(program.url) as client:
            for path in paths:
                for _ in range(3):
                    async with client.get(path, ssl=False) as answer:
                        assert answer.status == 200
                        await answer.read()
            before, asked = resident(program), len(paths) * 3
            crowded = crowd(program.port, requests, context if is_tls else None)
            await asyncio.to_thread(crowded.__enter__)
            try:
                await served(client, asked + len(requests))
                grown = resident(program) - before
                async with asyncio.timeout(60), client.get(paths[0], ssl=False) as answer:
                    assert answer.status == 200, "others are served meanwhile"
            finally:
                await asyncio.to_thread(crowded.__exit__, None, None, None)
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)
    return grown


@pytest.mark.parametrize("same", [True, False], ids=["known by its bytes", "the general way"])
async def test_t53_a_manifest_that_nobody_reads_is_in_memory_once(
    upstream: FakeUpstream, *, same: bool
) -> None:
    requests = [get(MANIFEST, *([] if same else [f"X-N: {n}"])) for n in range(CLIENTS)]
    assert await growth(upstream, requests) < ROOM


async def test_t53_a_manifest_that_nobody_reads_under_tls(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    made = certificate(tmp_path)
    key = made.authority.with_name("key.pem")
    requests = [get(MANIFEST, f"X-N: {n}") for n in range(CLIENTS)]
    tls = {"cert_file": str(made.authority), "key_file": str(key)}
    assert await growth(upstream, requests, tls=tls) < 2 * ROOM


async def test_t53_different_manifests_that_nobody_reads_have_a_bound(
    upstream: FakeUpstream,
) -> None:
    """More of them than are kept in RAM, so that each client would hold a copy of its own."""
    images = [content.oversized(2_000_000, seed) for seed in range(48)]
    for number, image in enumerate(images):
        upstream.add(REPO, image, tags=[f"v{number}"])
    requests = [get(f"/v2/{REPO}/manifests/v{n % 48}", f"X-N: {n}") for n in range(CLIENTS)]
    grown = await growth(upstream, requests, memory={"manifests": "8MiB"}, prefetch={"blobs": 0})
    assert grown < ROOM


async def test_t53_long_lists_that_nobody_reads_have_a_bound(upstream: FakeUpstream) -> None:
    upstream.add(REPO, LAYERED, tags=[f"{number:0>128}" for number in range(3000)])
    requests = [get(f"/v2/{REPO}/tags/list?n={2900 + n % 20}") for n in range(CLIENTS)]
    assert await growth(upstream, requests) < ROOM


PATIENCE = 0.5
SMALL = content.image(2, layers=(100_000,))  # sent from RAM at once
[SMALL_LAYER] = SMALL.layers
LISTED = [f"{number:0>128}" for number in range(3000)]
ANSWERS = {
    "manifest": MANIFEST,
    "blob": BLOB,
    "ranges of a blob": BLOB,
    "small blob": f"/v2/{REPO}/blobs/{SMALL_LAYER}",
    "list": f"/v2/{REPO}/tags/list",
    "statistics": "/metrics",
    "error": f"/v2/{REPO}/manifests/absent",
}


class Reluctant:
    """A client with a small buffer that reads only when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def ask(self, request: bytes) -> None:
        await asyncio.to_thread(self._sock.sendall, request)

    async def read(self, most: int) -> bytes:
        return await asyncio.to_thread(self._sock.recv, most)

    async def rest(self) -> int:
        """Read until the end; return how many bytes came."""
        count = 0
        try:
            while piece := await self.read(65536):
                count += len(piece)
        except (ConnectionError, ssl.SSLEOFError):  # it was reset
            pass
        return count


@contextmanager
def reluctant(proxy: Proxy, context: ssl.SSLContext | None = None) -> Iterator[Reluctant]:
    host, port = (proxy.app.address or "").split(":")
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.settimeout(30)
        sock.connect((host, int(port)))
        if context is not None:
            sock = stack.enter_context(
                context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            )
        yield Reluctant(sock)


def stalled(proxy: Proxy) -> int:
    count: int = proxy.stats["cache"]["stalled_clients"]
    return count


@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_t53_a_client_that_stops_reading_is_cut_off(
    start: Start, upstream: FakeUpstream, tmp_path: Path, what: str, *, secure: bool
) -> None:
    upstream.add(REPO, SMALL, tags=["small", *LISTED])
    made = certificate(tmp_path)
    key = made.authority.with_name("key.pem")
    tls = {"tls": {"cert_file": str(made.authority), "key_file": str(key)}} if secure else {}
    proxy = await start(timeouts={"send": PATIENCE}, **tls)
    context = ssl.create_default_context(cafile=made.authority) if secure else None
    path, lines = ANSWERS[what], ["Range: bytes=0-9000000,10000000-"] if "ranges" in what else []
    origin = f"{'https' if secure else 'http'}://{proxy.app.address}"
    connector = TCPConnector(ssl=context or False)
    async with ClientSession(origin, connector=connector) as client:
        for _ in range(3):
            async with client.get(path) as answer:
                length = len(await answer.read())
    await proxy.settled()
    many = 1 if length > 1_000_000 else 100  # all of a shorter one is with the kernels
    with reluctant(proxy, context) as one:
        await one.ask(get(path, *lines) * many)
        await until(lambda: stalled(proxy) == 1)
        got = await one.rest()
        assert many > 1 or got < length, "nobody sends the rest"
    assert "client cut off" in proxy.log.getvalue()


@pytest.mark.parametrize("path", [MANIFEST, BLOB], ids=["manifest", "blob"])
async def test_t53_a_slow_client_is_served(start: Start, upstream: FakeUpstream, path: str) -> None:
    patience = 2.0
    proxy = await start(timeouts={"send": patience})
    whole = (await proxy.get(path)).body
    await proxy.settled()
    loop = asyncio.get_running_loop()
    with reluctant(proxy) as one:
        await one.ask(get(path, "Connection: close"))
        end, got = loop.time() + 1.5 * patience, 0
        while loop.time() < end:
            piece = await one.read(16_384)
            assert piece, "it was cut off"
            got += len(piece)
            await asyncio.sleep(0.05)
        assert got < len(whole), "it was slow enough to prove something"
        assert got + await one.rest() > len(whole)
    assert stalled(proxy) == 0


async def test_t53_a_client_that_waits_for_upstream_is_served(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(timeouts={"send": PATIENCE})
    release = upstream.stall(1_000_000, kind="blob")
    pull = asyncio.create_task(proxy.get(BLOB))
    await asyncio.sleep(3 * PATIENCE)
    release.set()
    assert (await pull).body == LAYERED.blobs[LAYER]
    assert stalled(proxy) == 0


async def test_t53_a_client_whose_connection_closes_is_cut_off(start: Start) -> None:
    """Closing waits for what is still to be sent; that must end too."""
    proxy = await start(timeouts={"send": PATIENCE})
    await proxy.get(MANIFEST)
    with reluctant(proxy) as one:
        await one.ask(get(MANIFEST, "Connection: close"))
        await until(lambda: stalled(proxy) == 1)
