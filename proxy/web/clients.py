"""All connections of clients: what they take together, and which of them have stopped reading."""

import asyncio
import math
import socket
import struct
from typing import Final, NamedTuple, Protocol

import structlog

from proxy.runtime.metrics import CacheCounters
from proxy.web.paced import Outbox

LONGEST_PAUSE: Final = 5.0
"""Seconds between two looks at the connections, at most."""

IDLE_SECONDS: Final = 0.25
"""How long a connection must be idle to be closed in favour of others."""

_SLICE: Final = 256
_TCP_INFO: Final = struct.Struct("=24xI92xQ16xI")
"""Linux's ``struct tcp_info``: tcpi_unacked, tcpi_bytes_acked, tcpi_notsent_bytes (since 4.6)."""

log = structlog.get_logger(__name__)


class Delivery(NamedTuple):
    """How far a connection's bytes have come: some are under way, and so many have arrived."""

    is_pending: bool
    arrived: int


class Client(Protocol):
    """One open connection."""

    def socket(self) -> socket.socket | None:
        """Return its socket; None when it is closed."""

    def cut_off(self, reason: str) -> None:
        """Close it at once."""

    def idle_since(self) -> float | None:
        """Return since when it has waited for a request; None when it does something."""

    def close_idle(self) -> None:
        """Close it, as it is idle."""


class Clients:
    """The open connections of one server.

    A client that takes nothing for ``patience`` seconds, although something was sent to it, is cut
    off; one that takes little is not. What counts is what its machine has acknowledged: that goes
    for every way of sending, and a pause of ours is never taken for one of the client.
    """

    def __init__(self, counters: CacheCounters, patience: float = math.inf) -> None:
        self.outbox = Outbox()
        self._counters = counters
        self._patience = patience
        self._open: dict[Client, tuple[int, float]] = {}
        """Each with what had arrived when that was last seen to grow, and when that was."""

    def add(self, client: Client) -> None:
        """Note that a connection was opened."""
        self._open[client] = (-1, 0.0)

    def remove(self, client: Client) -> None:
        """Note that a connection was closed."""
        self._open.pop(client, None)

    def __len__(self) -> int:
        return len(self._open)

    def refused(self) -> None:
        """Count a connection that there was no room for."""
        self._counters.refused_connections += 1

    def close_idle(self, count: int) -> None:
        """Close up to ``count`` idle connections, the one that was idle longest first."""
        limit = asyncio.get_running_loop().time() - IDLE_SECONDS
        idle = [
            (since, place, client)
            for place, client in enumerate(self._open)
            if (since := client.idle_since()) is not None and since <= limit
        ]
        for _, _, client in sorted(idle)[:count]:
            client.close_idle()

    async def watch(self) -> None:
        """Cut off clients that have stopped reading, until cancelled."""
        pause = min(LONGEST_PAUSE, self._patience / 4)
        while True:
            await asyncio.sleep(pause)
            for count, client in enumerate(list(self._open), 1):
                self._look_at(client, asyncio.get_running_loop().time())
                if count % _SLICE == 0:
                    await asyncio.sleep(0)

    def _look_at(self, client: Client, now: float) -> None:
        known = self._open.get(client)
        sock = client.socket()
        if known is None or sock is None:
            return
        found = delivery(sock)
        if not found.is_pending or found.arrived != known[0]:
            self._open[client] = (found.arrived, now)
        elif now - known[1] >= self._patience:
            self._counters.stalled_clients += 1
            client.cut_off(f"nothing was read for {self._patience:g} seconds")


def delivery(sock: socket.socket) -> Delivery:
    """Return how far the bytes of a TCP connection have come; nothing pending for other kinds."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        in_flight, arrived, unsent = _TCP_INFO.unpack(info)
    except (OSError, ValueError, struct.error):  # closed, or a kernel that tells less
        return Delivery(is_pending=False, arrived=0)
    return Delivery(bool(in_flight or unsent), arrived)
