"""The 503 of a server without room, on a real socket; ``test_last_answers`` has other endings."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from proxy.web import closing
from proxy.web.closing import Refusal
from tests.running import until

REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: cache.example\r\n\r\n"
LONG = 3600.0


class Server:
    """Refuses every connection, and counts what became of them."""

    def __init__(self) -> None:
        self.answered = self.ended = 0

    def answer(self) -> None:
        self.answered += 1

    def end(self) -> None:
        self.ended += 1

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: Refusal(self.answer, self.end), "127.0.0.1", 0)
        host, port = listening.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            listening.close()
            await until(lambda: self.ended == 1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(closing, "REQUEST_SECONDS", LONG)
    monkeypatch.setattr(closing, "LINGER_SECONDS", LONG)
    return Server()


async def test_the_first_request_gets_503_and_the_rest_nothing(server: Server) -> None:
    async with server.client() as (reader, writer):
        writer.write(REQUEST)
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(REQUEST * 2)
            body = await reader.read()  # the server's side is shut down behind the answer
        assert head.startswith(b"HTTP/1.1 503 ")
        fields = dict(line.split(": ") for line in head.decode().splitlines()[1:] if line)
        assert fields["Retry-After"] == "1"
        assert fields["Connection"] == "close"
        assert int(fields["Content-Length"]) == len(body)
        assert json.loads(body)["errors"]
        assert (server.answered, server.ended) == (1, 0), "the client closes first"


async def test_a_client_that_sends_no_request_is_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "REQUEST_SECONDS", 0.05)
    async with server.client() as (reader, _):
        async with asyncio.timeout(30):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        await until(lambda: server.ended == 1)
        assert server.answered == 0


async def test_a_client_that_does_not_close_is_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "LINGER_SECONDS", 0.05)
    async with server.client() as (_, writer):
        writer.write(REQUEST)
        await until(lambda: server.ended == 1)


async def test_a_client_that_never_stops_sending_is_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "MAX_DISCARDED", 100_000)
    async with server.client() as (reader, writer):
        writer.write(REQUEST)
        async with asyncio.timeout(30):
            await reader.readuntil(b"\r\n\r\n")
            with suppress(ConnectionError):
                while server.ended == 0:
                    writer.write(b"x" * 10_000)
                    await writer.drain()
                    await asyncio.sleep(0)
        await until(lambda: server.ended == 1)
