"""Promises of room: for verified content, and for arriving bodies. ``eviction`` makes the room."""

import asyncio
from typing import Final, Protocol

from proxy.content.unproven import Unproven
from proxy.core.errors import StorageError
from proxy.core.records import disk_bytes

SHORTEST_LEAD: Final = 1024 * 1024
"""Bytes that a body gets promised at its start, if the cache is large enough."""


class NoRoom(StorageError):
    """There is no room, and eviction cannot make enough."""


class Room(Protocol):
    """Accounts for promises in disk bytes."""

    unproven: Unproven

    @property
    def longest_lead(self) -> int:
        """Bytes that an arriving body may have promised beyond those that have arrived."""

    async def take(self, more: int, upstream: str | None = None) -> None:
        """Promise ``more`` disk bytes. Raises ``NoRoom``."""

    def give_back(self, promised: int, upstream: str | None = None) -> None:
        """Take back a promise."""


class Reservation:
    """Disk bytes promised to verified content; released once the index counts them."""

    def __init__(self, room: Room, upstream: str | None = None) -> None:
        """``upstream`` names the source of unproven bytes; None for verified content."""
        self._room = room
        self._upstream = upstream
        self._bytes = 0

    async def grow(self, size: int) -> None:
        """Make the promise cover ``size`` bytes. Raises ``NoRoom``."""
        more = disk_bytes(size) - self._bytes
        if more > 0:
            await self._room.take(more, self._upstream)
            self._bytes += more

    def release(self) -> None:
        """Give the promise back; twice does no harm."""
        self._room.give_back(self._bytes, self._upstream)
        self._bytes = 0


class Arrival:
    """Room for a body that arrives, ``announced`` bytes long as its upstream says (None: unknown).

    Released when its file has been closed, or once the index counts it.
    """

    def __init__(self, room: Room, upstream: str, announced: int | None) -> None:
        self._room = room
        self._upstream = upstream
        self._announced = announced
        self._covered = -1
        self._come = 0
        self._lead = 0
        self._promise = Reservation(room, upstream)
        self._growing = asyncio.Lock()
        self._claim = disk_bytes(announced or 0)
        room.unproven.announce(upstream, self._claim)

    async def grow(self, size: int) -> None:
        """Get room for the first ``size`` bytes, and for a few more. Raises ``NoRoom``.

        The lead saves a call for every chunk. It grows with the bytes that have arrived, so that a
        small body takes little, and ends at the announced size.
        """
        if size > self._covered:
            async with self._growing:  # parallel ranges of one body grow at the same time
                if size > self._covered:
                    self._covered = await self._cover(size)
        self._come = max(size, self._come)
        self._set_lead(self._covered - self._come)

    def _set_lead(self, lead: int) -> None:
        self._room.unproven.leads += lead - self._lead
        self._lead = lead

    async def _cover(self, size: int) -> int:
        ahead = size + min(max(size, SHORTEST_LEAD), self._room.longest_lead)
        if self._announced is not None:
            ahead = max(size, min(ahead, self._announced))
        try:
            await self._promise.grow(ahead)
        except NoRoom:
            if ahead == size:
                raise
            await self._promise.grow(size)
            return size
        return ahead

    def release(self) -> None:
        """Give the room back; twice does no harm."""
        self._promise.release()
        self._set_lead(0)
        self._room.unproven.announce(self._upstream, -self._claim)
        self._claim = 0
