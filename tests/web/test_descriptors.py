"""The real program with few file descriptors: it serves as many as it can, and refuses politely."""

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientConnectionError, ClientSession, TCPConnector

from proxy.app.descriptors import descriptor_limits
from proxy.runtime.metrics import CacheCounters
from proxy.web import acceptor
from proxy.web.clients import Clients
from tests.fakes import content
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.parts import millpond
from tests.parts.millpond import Millpond
from tests.running import Proxy

FEW = 256
PULLS = 240
IMAGES = [content.image(number, layers=(50_000,)) for number in range(PULLS)]


@asynccontextmanager
async def program(upstream: FakeUpstream, files: int) -> AsyncIterator[Millpond]:
    """The program, which may open so many files; its soft limit is lower still."""
    under = ("prlimit", f"--nofile={files // 2}:{files}")
    running = millpond.running(upstream.url, under=under)
    started = await asyncio.to_thread(running.__enter__)
    try:
        yield started
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


def opened(program: Millpond) -> int:
    return len(list(Path(f"/proc/{program.pid}/fd").iterdir()))


class Crowd:
    """Clients that pull at the same time, each on connections of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.refused = 0

    async def pull(self, path: str, keep: bool) -> bytes:
        """Return a body; a refusal must be polite, and is followed by another try."""
        connector = TCPConnector(force_close=not keep)
        async with ClientSession(self._url, connector=connector) as client, asyncio.timeout(90):
            while True:
                async with client.get(path) as answer:
                    body = await answer.read()
                    if answer.status == 200:
                        if keep:
                            await asyncio.sleep(1)  # an idle connection is in nobody's way
                        return body
                    assert answer.status == 503, (answer.status, body)
                    self.refused += 1
                    wait = int(answer.headers["Retry-After"])
                await asyncio.sleep(wait)


@pytest.mark.parametrize("keep", [False, True], ids=["closing", "keeping idle connections"])
async def test_t55_many_cold_pulls_with_few_descriptors(
    upstream: FakeUpstream, *, keep: bool
) -> None:
    for number, image in enumerate(IMAGES):
        upstream.add(f"library/app{number}", image)
    async with program(upstream, FEW) as started:
        limits = resource.prlimit(started.pid, resource.RLIMIT_NOFILE)
        assert limits == (FEW, FEW), "the soft limit was raised"
        crowd = Crowd(started.url)
        paths = [
            f"/v2/library/app{number}/" + ("manifests/latest" if number % 4 == 0 else f"blobs/{image.layers[0]}")
            for number, image in enumerate(IMAGES)
        ]  # fmt: skip
        bodies = await asyncio.gather(*(crowd.pull(path, keep) for path in paths))
        for number, (image, body) in enumerate(zip(IMAGES, bodies, strict=True)):
            assert body == (image.manifest if number % 4 == 0 else image.blobs[image.layers[0]])
        assert await crowd.pull(paths[1], keep=False) == bodies[1], "it serves on"
        assert opened(started) < FEW
        said = started.log()
    assert "Too many open files" not in said
    assert '"status": 502' not in said


async def test_t55_who_waits_too_long_is_refused(upstream: FakeUpstream) -> None:
    """All that there is room for wait for upstream; the others get 503 and not a closed port."""
    for number, image in enumerate(IMAGES):
        upstream.add(f"library/app{number}", image)
    async with program(upstream, FEW) as started:
        release = upstream.hold(kind="blob")
        crowd = Crowd(started.url)
        paths = [f"/v2/library/app{n}/blobs/{image.layers[0]}" for n, image in enumerate(IMAGES)]
        pulls = [asyncio.create_task(crowd.pull(path, keep=False)) for path in paths[:100]]
        async with asyncio.timeout(60):
            while not crowd.refused:
                await asyncio.sleep(0.02)
        release.set()
        bodies = await asyncio.gather(*pulls)
        assert bodies == [image.blobs[image.layers[0]] for image in IMAGES[:100]]
        stats = await asyncio.to_thread(started.stats)
        assert stats["cache"]["refused_connections"] >= crowd.refused
        said = started.log()
    assert said.count("connections wait for free descriptors") == 1, "it is said once a minute"


async def test_t55_silent_connections_keep_nobody_out(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGES[0])
    async with program(upstream, FEW) as started:
        silent = [socket.create_connection(("127.0.0.1", started.port)) for _ in range(200)]
        crowd = Crowd(started.url)
        body = await crowd.pull("/v2/library/app/manifests/latest", keep=False)
        for one in silent:
            one.close()
        assert body == IMAGES[0].manifest
        assert await crowd.pull("/v2/library/app/manifests/latest", keep=False) == body


async def test_t55_silent_connections_on_the_tls_port_keep_nobody_out(tmp_path: Path) -> None:
    """They never finish their handshake: neither the places nor those to refuse are lost."""
    made = certificate(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(made.authority, made.authority.with_name("key.pem"))
    trusting = ssl.create_default_context(cafile=made.authority)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    counters = CacheCounters()
    clients = Clients(counters)

    class Greeting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"hello")  # type: ignore[attr-defined]
            transport.close()

    door = acceptor.Acceptor(listener, Greeting, clients, limit=4, context=server)
    door.start()
    silent = [socket.create_connection(address) for _ in range(40)]
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(*address, ssl=trusting)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            said = await reader.read()
            writer.transport.abort()
    finally:
        for one in silent:
            one.close()
    assert said == b"hello" or said.startswith(b"HTTP/1.1 503 ")
    async with asyncio.timeout(60):
        while said != b"hello":
            reader, writer = await asyncio.open_connection(*address, ssl=trusting)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            said = await reader.read()
            writer.transport.abort()
    await door.close()


async def test_t55_a_failing_accept_is_survived(upstream: FakeUpstream) -> None:
    """No descriptor is left at all for a while: afterwards the port is open as before."""
    upstream.add("library/app", IMAGES[0])
    async with program(upstream, 1024) as started:
        crowd = Crowd(started.url)
        body = await crowd.pull("/v2/library/app/manifests/latest", keep=False)
        everything = resource.prlimit(started.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(started.pid, resource.RLIMIT_NOFILE, (3, everything[1]))
        pulls = [
            asyncio.create_task(crowd.pull("/v2/library/app/manifests/latest", keep=False))
            for _ in range(20)
        ]
        async with asyncio.timeout(30):
            while "connections wait for free descriptors" not in started.log():
                await asyncio.sleep(0.02)
        resource.prlimit(started.pid, resource.RLIMIT_NOFILE, everything)
        assert set(await asyncio.gather(*pulls)) == {body}


@pytest.mark.parametrize("limit", [64, 128, 256, 1024, 4096, 65_536, 1_048_576])
def test_t55_what_all_may_take_together_fits(limit: int) -> None:
    shares = descriptor_limits(limit, 64)
    assert shares.clients >= 8
    assert 2 <= shares.downloads <= 64
    if limit >= 256:
        assert 80 + 4 * shares.clients + 4 * shares.downloads <= limit
    if limit >= 1024:
        assert shares.downloads == 64 or limit < 2048


async def test_t55_an_accepted_connection_that_has_ended_harms_nobody(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accept` may report an error of the connection, as ECONNABORTED."""
    failures = iter([OSError(103, "Software caused connection abort")] * 3)
    real = socket.socket.accept

    def failing(listener: socket.socket) -> tuple[socket.socket, object]:
        for failure in failures:
            raise failure
        return real(listener)

    monkeypatch.setattr(socket.socket, "accept", failing)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(acceptor, "PATIENCE", 0)
        async with ClientSession(f"http://{proxy.app.address}") as client:
            try:
                async with client.get("/v2/") as answer:
                    assert answer.status == 200
            except ClientConnectionError:
                pytest.fail("the port was closed")
