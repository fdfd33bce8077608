"""Responses that a registry sends without having been asked, beside its one answer."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.upstream.connector import MAX_INTERIM, _OneResponse
from tests.running import Start, until

PATH = "/v2/evil/app/manifests/latest"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
ABSENT = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

MOST_SENT = 32 << 20
"""Bytes that may be in flight, in the buffers of two sockets and two event loops."""

MOST_GROWN = 64 << 20
LONGEST_STALL = 1.0
"""Seconds of this thread's processor time; the unbounded flood stalled for 2 s at a time."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def registry(serve: Serve) -> AsyncIterator[str]:
    """A registry of which each connection is answered by ``serve``."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def flood(writer: asyncio.StreamWriter, responses: bytes) -> None:
    """Send without end, until the other side has had enough."""
    piece = responses * (256 * 1024 // len(responses))
    sent = 0
    while sent < MOST_SENT:
        writer.write(piece)
        await writer.drain()
        sent += len(piece)
    pytest.fail("nobody ended the connection")


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """The longest stall of the event loop, in seconds, and the most memory, in bytes.

    Time in which other processes had the processor does not count.
    """

    def __init__(self) -> None:
        self.stall = 0.0
        self.most = self.least = resident()

    async def run(self) -> None:
        while True:
            begun = time.thread_time()
            await asyncio.sleep(0.005)
            self.stall = max(self.stall, time.thread_time() - begun)
            self.most = max(self.most, resident())


@asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """Fail when the loop stalls or the memory grows meanwhile."""
    watch = Watch()
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
    assert watch.stall < LONGEST_STALL
    assert watch.most - watch.least < MOST_GROWN


@pytest.mark.parametrize("responses", [CONTINUE, HINTS], ids=["100", "103"])
async def test_t51_interim_responses_without_end(start: Start, responses: bytes) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await flood(writer, responses)
        ended.set()

    async with registry(serve) as url:
        proxy = await start(upstreams={"evil": {"url": url}})
        async with watched():
            answer = await proxy.get(PATH)
            assert answer.status == 502
            assert b"interim responses" in answer.body
            async with asyncio.timeout(30):
                await ended.wait()


@pytest.mark.parametrize(("count", "status"), [(MAX_INTERIM, 404), (MAX_INTERIM + 1, 502)])
async def test_t51_a_few_interim_responses_are_skipped(
    start: Start, count: int, status: int
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(HINTS * count + ABSENT)

    async with registry(serve) as url:
        proxy = await start(upstreams={"evil": {"url": url}}, freshness={"negative_ttl": 0})
        for _ in range(2):
            assert (await proxy.get(PATH)).status == status


async def test_t51_answers_that_nobody_asked_for_end_the_connection(start: Start) -> None:
    """Behind an answer, and on a connection that is kept for the next request."""
    connections = 0
    ended = 0
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, ended
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ABSENT)
        if connections == 1:
            await answered.wait()
        with contextlib.suppress(ConnectionError):
            await flood(writer, ABSENT)
        ended += 1

    async with registry(serve) as url:
        proxy = await start(upstreams={"evil": {"url": url}}, freshness={"negative_ttl": 0})
        async with watched():
            assert (await proxy.get(PATH)).status == 404
            answered.set()
            await until(lambda: ended == 1)
            assert (await proxy.get(PATH)).status == 404
            await until(lambda: ended == 2)


async def test_t51_a_byte_that_nobody_asked_for_ends_an_idle_connection(start: Start) -> None:
    """The rest would be taken for the answer to the next request."""
    answered, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ABSENT)
        await answered.wait()
        writer.write(ABSENT[:10])
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with registry(serve) as url:
        proxy = await start(upstreams={"evil": {"url": url}})
        assert (await proxy.get(PATH)).status == 404
        answered.set()
        async with asyncio.timeout(30):
            await ended.wait()


@pytest.mark.parametrize(("responses", "status"), [(CONTINUE, 502), (ABSENT, 404)])
async def test_t51_a_flood_is_noticed_before_all_that_arrived_is_parsed(
    start: Start, monkeypatch: pytest.MonkeyPatch, responses: bytes, status: int
) -> None:
    parsed = queued = 0
    feed = _OneResponse.feed_data

    def counted(self: _OneResponse, *arguments: Any) -> None:
        nonlocal parsed, queued
        feed(self, *arguments)
        parsed += 1
        queued = max(queued, len(self))

    monkeypatch.setattr(_OneResponse, "feed_data", counted)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await flood(writer, responses)

    async with registry(serve) as url:
        proxy = await start(upstreams={"evil": {"url": url}})
        assert (await proxy.get(PATH)).status == status
    assert 1 <= parsed < 1000
    assert queued <= 1


async def test_t51_a_change_of_protocol_ends_the_connection(start: Start) -> None:
    ended = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ended
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            await flood(writer, ABSENT)
        ended += 1

    async with registry(serve) as url:
        proxy = await start(upstreams={"evil": {"url": url}})
        answer = await proxy.get(PATH)
        assert answer.status == 502
        assert b"interim responses" in answer.body
        await until(lambda: ended == 1)
