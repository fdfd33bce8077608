"""The connections of clients: whom the server closes for room, and whom it calls stalled."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from proxy.runtime.metrics import CacheCounters
from proxy.web.clients import IDLE_SECONDS, Clients, SendProgress, send_progress
from tests.running import until


class Connection:
    """One connection: idle since a loop time, or busy (None)."""

    def __init__(self, idle_since: float | None = None, sock: socket.socket | None = None) -> None:
        self.idle = idle_since
        self.sock = sock
        self.closed = False
        self.cut: list[str] = []

    def socket(self) -> socket.socket | None:
        return self.sock

    def cut_off(self, reason: str) -> None:
        self.cut.append(reason)

    def idle_since(self) -> float | None:
        return self.idle

    def close_idle(self) -> None:
        self.closed = True


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a TCP connection with small buffers."""
    with socket.socket() as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.setblocking(False)
            client.setblocking(False)
            yield server, client


def fill(server: socket.socket) -> int:
    """Send until nothing more fits; return the number of bytes."""
    sent = 0
    try:
        while True:
            sent += server.send(b"x" * 65536)
    except BlockingIOError:
        return sent


def drain(client: socket.socket) -> int:
    read = 0
    try:
        while chunk := client.recv(65536):
            read += len(chunk)
    except BlockingIOError:
        pass
    return read


async def test_the_longest_idle_are_closed_first() -> None:
    clients, now = Clients(CacheCounters()), asyncio.get_running_loop().time()
    ages = [IDLE_SECONDS + 1, IDLE_SECONDS + 3, IDLE_SECONDS + 2, 0.0, None]
    connections = [Connection(None if age is None else now - age) for age in ages]
    for connection in connections:
        clients.add(connection)
    clients.close_idle(2)
    assert [one.closed for one in connections] == [False, True, True, False, False]
    clients.close_idle(100)
    assert [one.closed for one in connections] == [True, True, True, False, False]


def test_refused_connections_are_counted() -> None:
    counters = CacheCounters()
    clients = Clients(counters)
    clients.refused()
    clients.refused()
    assert counters.refused_connections == 2
    assert len(clients) == 0


async def test_what_is_not_read_is_pending(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    before = send_progress(server)
    assert not before.is_pending
    sent, read = fill(server), 0
    assert send_progress(server).is_pending

    def has_all() -> bool:
        nonlocal read
        read += drain(client)
        return not send_progress(server).is_pending

    await until(has_all)
    assert send_progress(server).arrived - before.arrived == sent
    await until(lambda: has_all() and read == sent)


def test_other_sockets_have_nothing_pending() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        assert send_progress(one) == SendProgress(is_pending=False, arrived=0)
    assert send_progress(one) == SendProgress(is_pending=False, arrived=0)  # closed


async def test_a_client_is_cut_off_if_it_has_read_nothing_for_as_long_as_it_may(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    server, reader = pair
    counters = CacheCounters()
    clients, client = Clients(counters, patience=60.0), Connection(sock=server)
    clients.add(client)
    fill(server)
    clients._check(client, 1000.0)
    had = send_progress(server).arrived
    await until(lambda: drain(reader) > 0 and send_progress(server).arrived > had)
    fill(server)
    await until(lambda: send_progress(server).is_pending)
    clients._check(client, 1100.0)  # slow, but it reads
    clients._check(client, 1159.0)
    assert (client.cut, counters.stalled_clients) == ([], 0)
    clients._check(client, 1160.0)
    assert (client.cut, counters.stalled_clients) == (["nothing was read for 60 seconds"], 1)


async def test_a_client_that_has_all_may_be_silent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    server, _ = pair
    server.send(b"x")
    await until(lambda: not send_progress(server).is_pending)
    clients, client = Clients(CacheCounters(), patience=60.0), Connection(sock=server)
    clients.add(client)
    for now in (1000.0, 2000.0, 3000.0):
        clients._check(client, now)
    assert client.cut == []


async def test_connections_are_looked_at_while_they_are_open(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    server, _ = pair
    clients = Clients(CacheCounters(), patience=0.1)
    stalled, closed, gone = Connection(sock=server), Connection(), Connection(sock=server)
    for one in (stalled, closed, gone):
        clients.add(one)
    clients.remove(gone)
    assert len(clients) == 2
    fill(server)
    watching = asyncio.create_task(clients.watch())
    await until(lambda: bool(stalled.cut))
    watching.cancel()
    assert closed.cut == gone.cut == []
