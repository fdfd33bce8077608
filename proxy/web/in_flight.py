"""Bounds the bytes that are on their way to other replicas, so that clients get their share.

On a cable that is full, a connection gets a share in proportion to its bytes that wait there. So a
bound of these leaves the rest of a full cable to clients. On a cable with room it limits nothing:
there bytes are acknowledged within a millisecond.
"""

import asyncio
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from typing import Final

from aiohttp.web import BaseRequest

MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of all transfers together that the other side has not acknowledged."""

STEP: Final = 64 * 1024
"""Every transfer may have so many bytes on their way, whatever the others have."""

_POLL: Final = 0.01


class InFlight:
    """The bytes on their way to replicas; ``limit`` is in bytes."""

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._transfers: set[Transfer] = set()

    @property
    def bytes(self) -> int:
        """How many there are, as far as each transfer has looked."""
        return sum(one.known for one in self._transfers)

    @contextmanager
    def transfer(self, request: BaseRequest) -> Iterator["Transfer"]:
        """Give the pace of one transfer while it lasts."""
        transfer = Transfer(self, request)
        self._transfers.add(transfer)
        try:
            yield transfer
        finally:
            self._transfers.discard(transfer)

    def room(self, known: int) -> int:
        """Return how many bytes a transfer may send that has ``known`` ones on their way.

        All have equal shares. One that began before others may have more than its share, which the
        others get when it is acknowledged.
        """
        share = self._limit // len(self._transfers)
        return max(STEP - known, min(share - known, self._limit - self.bytes))


class Transfer:
    """The pace of one transfer. ``known`` are its bytes on their way, when it last looked."""

    def __init__(self, all_: InFlight, request: BaseRequest) -> None:
        self._all = all_
        self._request = request
        self.known = 0

    async def acquire(self, most: int) -> int:
        """Return how many bytes may be sent; wait until enough are acknowledged."""
        while True:
            self.known = self._unacknowledged()
            room = self._all.room(self.known)
            if room >= min(most, STEP):
                break
            await asyncio.sleep(_POLL)
        size = min(most, room)
        self.known += size
        return size

    async def acquire_small(self, size: int) -> None:
        """Return at once."""

    def refund(self, size: int) -> None:
        """Do nothing: the next call measures what was sent."""

    def _unacknowledged(self) -> int:
        """Return how many bytes the kernel keeps for this connection; 0 for one that is closed."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return 0
        try:
            answer = ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, b"\0" * 4)
        except (OSError, ValueError):
            return 0
        return int(struct.unpack("i", answer)[0])
