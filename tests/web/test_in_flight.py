"""Bytes on their way to replicas that do not read them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from yarl import URL

from proxy.core.names import Digest, Repo, Target
from proxy.fleet.protocol import ContentRequest
from proxy.fleet.signatures import HEADER, Signer
from proxy.web import fleet as peers
from proxy.web.in_flight import STEP, InFlight
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.fleet.fleets import SECRET
from tests.fleet.together import fleet, starting
from tests.parts import redis as redises
from tests.running import Proxy, until

SIZE = 12_000_000
IMAGE = content.image("large", layers=(SIZE,))
LAYER = Digest(IMAGE.layers[0])
QUESTION = ContentRequest("blobs", Target("docker.io", Repo("library/app")), LAYER)
TRANSFERS = 8
LIMIT = 2 * 1024 * 1024


@pytest.fixture
def in_flight(monkeypatch: pytest.MonkeyPatch) -> InFlight:
    bounded = InFlight(LIMIT)
    monkeypatch.setattr(peers, "InFlight", lambda: bounded)
    return bounded


@pytest.fixture
async def one(
    in_flight: InFlight, upstream: FakeUpstream, clock: Clock, tmp_path: Path
) -> AsyncIterator[Proxy]:
    upstream.add("library/app", IMAGE)
    with redises.running() as redis:
        async with starting(upstream, redis, clock, tmp_path) as start:
            proxy = await start()
            await proxy.get(f"/v2/library/app/blobs/{LAYER}")
            await proxy.settled()
            yield proxy


def asking(proxy: Proxy) -> socket.socket:
    """Return a connection that has asked for the blob, and reads nothing."""
    own = fleet(proxy)
    signer = Signer(SECRET.encode(), "http://me", own.store.now)
    address = URL(own.address)
    connection = socket.create_connection((address.host, address.port))
    proof = signer.sign("GET", own.address, QUESTION.path)
    head = f"GET {QUESTION.path} HTTP/1.1\r\nHost: x\r\n{HEADER}: {proof}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def read(connection: socket.socket) -> bytes:
    """Return the body of a response."""
    got = b""
    while (begin := got.find(b"\r\n\r\n") + 4) < 4 or len(got) < begin + SIZE:
        got += connection.recv(1 << 20)
    return got[begin:]


def unacknowledged(proxy: Proxy) -> int:
    """Return the bytes that the kernel keeps for all connections to a replica."""
    port = URL(fleet(proxy).address).port
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, _, queues, *_ = line.split()
        if int(local.partition(":")[2], 16) == port:
            total += int(queues.partition(":")[0], 16)
    return total


async def test_replicas_that_do_not_read_keep_little(one: Proxy, in_flight: InFlight) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(asking(one)) for _ in range(TRANSFERS)]
        await until(lambda: len(in_flight._transfers) == TRANSFERS)
        await until(lambda: unacknowledged(one) > LIMIT // 2)
        for _ in range(50):
            assert unacknowledged(one) <= LIMIT + TRANSFERS * STEP
            await asyncio.sleep(0.01)
        bodies = await asyncio.gather(*(asyncio.to_thread(read, one) for one in connections))
        assert set(bodies) == {IMAGE.blobs[LAYER]}, "all get everything"
    await until(lambda: in_flight.bytes == 0)


async def test_one_replica_may_have_all(one: Proxy, in_flight: InFlight) -> None:
    with asking(one):
        await until(lambda: unacknowledged(one) > LIMIT - 2 * STEP)
        assert unacknowledged(one) <= LIMIT
    await until(lambda: in_flight.bytes == 0)


async def test_one_that_reads_nothing_holds_up_no_other_one(
    one: Proxy, in_flight: InFlight
) -> None:
    with asking(one), asking(one) as second:
        await until(lambda: len(in_flight._transfers) == 2)
        assert await asyncio.to_thread(read, second) == IMAGE.blobs[LAYER]
