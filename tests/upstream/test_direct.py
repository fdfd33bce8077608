"""Long bodies past aiohttp's parser: through real sockets, with TLS and without."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientResponse
from yarl import URL

from proxy.core.errors import UpstreamTimeout, UpstreamUnavailable
from proxy.core.names import sha256
from proxy.runtime.metrics import UpstreamCounters
from proxy.settings import Timeouts, UpstreamTLS
from proxy.upstream.direct import READ_BUFFER, DirectBody
from proxy.upstream.guard import SYSTEM_NETWORK, Guard
from proxy.upstream.transport import HTTPRequest, Transport, client_context
from tests.fakes import content
from tests.fakes.tls import certificate
from tests.running import until

BODY = content.blob(5 * READ_BUFFER + 12_345)
DIGEST = sha256(BODY)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"

Send = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Registry:
    """Sends what ``send`` writes to each request; counts connections."""

    def __init__(self, send: Send) -> None:
        self.connections = 0
        self.ended = 0
        self.sent = 0
        self.transport: Transport
        self._send = send

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                await self._send(writer)
                await writer.drain()
                self.sent += 1
        self.ended += 1
        writer.close()

    async def response(self) -> ClientResponse:
        return await self.transport.send(
            HTTPRequest("GET", self.transport.url / "blob", {}, READ_BUFFER)
        )


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Registry]]
"""Serves what a ``Send`` writes; ``idle`` is how long the registry may send nothing."""


@pytest.fixture(params=["http", "https"])
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Serve:
    made = certificate(tmp_path) if request.param == "https" else None
    tls = UpstreamTLS() if made is None else UpstreamTLS(ca_file=made.authority)
    context = None if made is None else made.server

    @asynccontextmanager
    async def serve(send: Send, idle: str = "60s") -> AsyncIterator[Registry]:
        registry = Registry(send)
        server = await asyncio.start_server(registry.serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        url = URL(f"{request.param}://127.0.0.1:{port}")
        guard = Guard(url, (), private=False, network=SYSTEM_NETWORK)
        limits = Timeouts.model_validate({"idle": idle})
        registry.transport = Transport(
            "lab", guard, client_context("lab", tls), limits, UpstreamCounters()
        )
        try:
            yield registry
        finally:
            await registry.transport.close()
            server.close()
        await until(lambda: registry.ended == registry.connections)

    return serve


async def whole(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD % len(BODY) + BODY)


async def rest(registry: Registry, response: ClientResponse, most: int = READ_BUFFER) -> bytes:
    received = bytearray()
    while piece := await registry.transport.read(response, most):
        assert len(piece) <= most
        received += piece
    return bytes(received)


async def test_a_long_body_comes_whole_and_its_connection_is_used_again(serving: Serve) -> None:
    async with serving(whole) as registry:
        for _ in range(3):
            response = await registry.response()
            first = await registry.transport.read(response, READ_BUFFER)
            assert DirectBody.of(response, READ_BUFFER) is not None
            assert sha256(bytes(first) + await rest(registry, response)) == DIGEST
            assert registry.transport.is_idle
        assert registry.connections == 1
        assert registry.transport.counters.bytes_from_upstream == 3 * len(BODY)


async def test_pieces_that_were_read_do_not_change(serving: Serve) -> None:
    async def in_drops(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % len(BODY))
        for start in range(0, len(BODY), 300_000):
            writer.write(BODY[start : start + 300_000])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(in_drops) as registry:
        response = await registry.response()
        pieces = []
        while piece := await registry.transport.read(response, READ_BUFFER):
            pieces.append(piece)
        assert sha256(b"".join(pieces)) == DIGEST


async def test_no_more_is_read_than_was_asked_for(serving: Serve) -> None:
    async with serving(whole) as registry:
        response = await registry.response()
        first = await registry.transport.read(response, READ_BUFFER)
        assert sha256(bytes(first) + await rest(registry, response, 10_000)) == DIGEST


async def test_a_body_that_is_not_read_stays_with_its_registry(serving: Serve) -> None:
    size = 50 * READ_BUFFER

    async def long(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % size)
        for _ in range(50):
            writer.write(bytes(READ_BUFFER))
            await writer.drain()

    async with serving(long) as registry:
        response = await registry.response()
        first = await registry.transport.read(response, READ_BUFFER)
        body = DirectBody.of(response, READ_BUFFER)
        assert body is not None
        await until(lambda: not body.is_reading)
        assert body.held <= 4 * READ_BUFFER
        assert registry.sent == 0
        assert len(first) + len(await rest(registry, response)) == size


@pytest.mark.parametrize("sent", [READ_BUFFER, len(BODY) - 1])
async def test_a_body_that_breaks_off(serving: Serve, sent: int) -> None:
    async def broken(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % len(BODY) + BODY[:sent])
        writer.close()

    async with serving(broken) as registry:
        response = await registry.response()
        with pytest.raises(UpstreamUnavailable, match="ClientPayloadError"):
            await rest(registry, response)
        response.close()


async def test_a_body_that_stalls(serving: Serve) -> None:
    async def stalled(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % len(BODY) + BODY[:READ_BUFFER])

    async with serving(stalled, idle="1s") as registry:
        response = await registry.response()
        with pytest.raises(UpstreamTimeout):
            await rest(registry, response)
        response.close()


async def test_a_reader_that_waits_longer_than_its_registry_may(serving: Serve) -> None:
    """The timeout is for the registry: a body that nobody reads is not late."""
    async with serving(whole, idle="1s") as registry:
        response = await registry.response()
        first = await registry.transport.read(response, READ_BUFFER)
        await asyncio.sleep(1.3)  # longer than the timeout
        assert sha256(bytes(first) + await rest(registry, response)) == DIGEST


async def test_a_cancelled_read_leaves_no_connection(serving: Serve) -> None:
    async def stalled(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % len(BODY) + BODY[: READ_BUFFER + 1])

    async with serving(stalled) as registry:
        response = await registry.response()
        received = 0
        while received <= READ_BUFFER:
            received += len(await registry.transport.read(response, READ_BUFFER))
        waiting = asyncio.ensure_future(registry.transport.read(response, READ_BUFFER))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        response.close()
        await until(lambda: registry.ended == 1)


async def test_bytes_after_the_body_end_the_connection(serving: Serve) -> None:
    async def too_much(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % len(BODY) + BODY + HEAD % 3 + b"lie")

    async with serving(too_much) as registry:
        for number in (1, 2):
            assert sha256(await rest(registry, await registry.response())) == DIGEST
            await until(lambda: registry.ended == number)  # noqa: B023 - called in this round
        assert registry.connections == 2


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n", HEAD],
    ids=["chunked", "short"],
)
async def test_other_bodies_are_read_by_aiohttp(serving: Serve, head: bytes) -> None:
    data = BODY[: 2 * READ_BUFFER] if b"chunked" in head else BODY[: READ_BUFFER - 1]

    async def other(writer: asyncio.StreamWriter) -> None:
        writer.write(head % len(data) + data)
        if b"chunked" in head:
            writer.write(b"\r\n0\r\n\r\n")

    async with serving(other) as registry:
        response = await registry.response()
        assert DirectBody.of(response, READ_BUFFER) is None
        assert sha256(await rest(registry, response)) == sha256(data)
