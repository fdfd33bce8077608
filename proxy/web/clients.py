"""All connections of clients: closes idle ones at the limit, and stalled ones."""

import asyncio
import math
import socket
import struct
from typing import Final, NamedTuple, Protocol

import structlog

from proxy.runtime.metrics import CacheCounters
from proxy.web.pacing import SendBuffer

LONGEST_PAUSE: Final = 5.0
"""Seconds between two checks of the connections, at most."""

IDLE_SECONDS: Final = 0.25
"""Idle time after which a connection may be closed in favour of others."""

_SLICE: Final = 256
_TCP_INFO: Final = struct.Struct("=24xI92xQ16xI")
"""Linux's ``struct tcp_info``: tcpi_unacked, tcpi_bytes_acked, tcpi_notsent_bytes (since 4.6)."""

log = structlog.get_logger(__name__)


class SendProgress(NamedTuple):
    """Whether sent bytes are not acknowledged yet, and how many the client has acknowledged."""

    is_pending: bool
    arrived: int


class Client(Protocol):
    """One open connection."""

    def socket(self) -> socket.socket | None:
        """Return its socket, None once it is closed."""

    def cut_off(self, reason: str) -> None:
        """Close it immediately."""

    def idle_since(self) -> float | None:
        """Return the loop time since which it is idle, None while a request is in progress."""

    def close_idle(self) -> None:
        """Close it while it is idle."""


class Clients:
    """The open connections of one server.

    A client is disconnected if bytes wait for it and its kernel acknowledges none of them for
    ``patience`` seconds; a slow client is not. Acknowledgements work for every way of sending, and
    never mistake a pause of this server for one of the client.
    """

    def __init__(self, counters: CacheCounters, patience: float = math.inf) -> None:
        self.send_buffer = SendBuffer()
        self._counters = counters
        self._patience = patience
        self._open: dict[Client, tuple[int, float]] = {}
        """Each with its acknowledged bytes, and the loop time at which that number last changed."""

    def add(self, client: Client) -> None:
        """Register an open connection."""
        self._open[client] = (-1, 0.0)

    def remove(self, client: Client) -> None:
        """Unregister a closed connection."""
        self._open.pop(client, None)

    def __len__(self) -> int:
        return len(self._open)

    def refused(self) -> None:
        """Count a refused connection."""
        self._counters.refused_connections += 1

    def close_idle(self, count: int) -> None:
        """Close up to ``count`` idle connections, the longest idle first."""
        limit = asyncio.get_running_loop().time() - IDLE_SECONDS
        idle = [
            (since, place, client)
            for place, client in enumerate(self._open)
            if (since := client.idle_since()) is not None and since <= limit
        ]
        for _, _, client in sorted(idle)[:count]:
            client.close_idle()

    async def watch(self) -> None:
        """Disconnect clients that have stopped reading, until cancelled."""
        pause = min(LONGEST_PAUSE, self._patience / 4)
        while True:
            await asyncio.sleep(pause)
            for count, client in enumerate(list(self._open), 1):
                self._check(client, asyncio.get_running_loop().time())
                if count % _SLICE == 0:
                    await asyncio.sleep(0)

    def _check(self, client: Client, now: float) -> None:
        known = self._open.get(client)
        sock = client.socket()
        if known is None or sock is None:
            return
        found = send_progress(sock)
        if not found.is_pending or found.arrived != known[0]:
            self._open[client] = (found.arrived, now)
        elif now - known[1] >= self._patience:
            self._counters.stalled_clients += 1
            client.cut_off(f"nothing was read for {self._patience:g} seconds")


def send_progress(sock: socket.socket) -> SendProgress:
    """Return what a TCP connection has delivered; for other sockets nothing is pending."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        in_flight, arrived, unsent = _TCP_INFO.unpack(info)
    except (OSError, ValueError, struct.error):  # closed, or a kernel with a shorter struct
        return SendProgress(is_pending=False, arrived=0)
    return SendProgress(bool(in_flight or unsent), arrived)
