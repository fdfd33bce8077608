"""Reservations of space: for proven content, and for arriving bodies.

``eviction`` manages the space, and frees some when it is short.
"""

from typing import TYPE_CHECKING, Final

from proxy.core.errors import StorageError
from proxy.core.records import disk_bytes

if TYPE_CHECKING:
    from proxy.content.eviction import Evictor

SHORTEST_LEAD: Final = 1024 * 1024
"""Bytes reserved for a body from the beginning, if the cache is large enough."""


class NoSpace(StorageError):
    """There is no space, and eviction cannot free enough."""


class Reservation:
    """Disk bytes reserved for verified content; released once the index counts them."""

    def __init__(self, evictor: "Evictor", upstream: str | None = None) -> None:
        """``upstream`` is the registry that sends unproven bytes; None for proven content."""
        self._evictor = evictor
        self._upstream = upstream
        self._bytes = 0

    async def grow(self, size: int) -> None:
        """Extend the reservation to ``size`` bytes. Raises ``NoSpace``."""
        more = disk_bytes(size) - self._bytes
        if more > 0:
            await self._evictor.promise(more, self._upstream)
            self._bytes += more

    def release(self) -> None:
        """Release the reservation. A second call does nothing."""
        self._evictor.release(self._bytes, self._upstream)
        self._bytes = 0


class BodyReservation:
    """Space for an arriving body; ``announced`` is its size according to upstream (None: unknown).

    ``upstream`` is None for a body that an operator brings: it may evict all that is not protected.
    Released when its file has been closed, or once the index counts it.
    """

    def __init__(self, evictor: "Evictor", upstream: str | None, announced: int | None) -> None:
        self._evictor = evictor
        self._upstream = upstream
        self._announced = announced
        self._covered = -1
        self._received = 0
        self._lead = 0
        self._promise = Reservation(evictor, upstream)
        self._claim = 0 if upstream is None else disk_bytes(announced or 0)
        self._announce(self._claim)

    async def grow(self, size: int) -> None:
        """Reserve space for the first ``size`` bytes, and a lead beyond. Raises ``NoSpace``.

        The lead saves a reservation at every chunk. It grows with the bytes received, so that a
        small body takes little, and stops at the announced size.
        """
        if size > self._covered:
            self._covered = await self._cover(size)
        self._received = max(size, self._received)
        self._set_lead(self._covered - self._received)

    def _set_lead(self, lead: int) -> None:
        self._evictor.unproven.leads += lead - self._lead
        self._lead = lead

    async def _cover(self, size: int) -> int:
        ahead = size + min(max(size, SHORTEST_LEAD), self._evictor.longest_lead)
        if self._announced is not None:
            ahead = max(size, min(ahead, self._announced))
        try:
            await self._promise.grow(ahead)
        except NoSpace:
            if ahead == size:
                raise
            await self._promise.grow(size)
            return size
        return ahead

    def release(self) -> None:
        """Release the space. A second call does nothing."""
        self._promise.release()
        self._set_lead(0)
        self._announce(-self._claim)
        self._claim = 0

    def _announce(self, size: int) -> None:
        if self._upstream is not None:
            self._evictor.unproven.announce(self._upstream, size)
