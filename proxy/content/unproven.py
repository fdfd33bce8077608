"""How much room each upstream's unproven downloads take. Pure state.

Until the last byte has arrived, a body and its announced size are only an upstream's claim. A body
without end must not evict what others use. So unproven bytes may take all free room, and beyond it
evict content until they make up a share of what is held; then the download is not kept. This bounds
parallel bodies, because their bytes are added up, and bodies one after the other, because the next
one finds the room that the last one has left.
"""

from collections import Counter

from proxy.core.records import disk_bytes


class Unproven:
    """Disk bytes that the unproven downloads of each upstream occupy, and those they announce."""

    def __init__(self, share: float) -> None:
        """``share`` (0 to 1) of what is held may be evicted for one upstream."""
        self._share = share
        self._occupied: Counter[str] = Counter()
        self._announced: Counter[str] = Counter()
        self.leads = 0
        """Bytes promised to them that have not arrived: the disk still has them free."""

    @property
    def bytes(self) -> int:
        """Disk bytes that all of them occupy."""
        return self._occupied.total()

    def occupy(self, upstream: str, more: int) -> None:
        """Count ``more`` disk bytes; negative when they are given back."""
        self._occupied[upstream] += more

    def announce(self, upstream: str, size: int) -> None:
        """Count a download of ``size`` bytes that begins; negative when it ends."""
        self._announced[upstream] += size

    def may_evict(self, upstream: str, held: int) -> bool:
        """Return True if content may be evicted for the bytes that an upstream occupies now.

        ``held`` is in disk bytes.
        """
        occupied = self._occupied[upstream]
        return occupied <= self._share * (held + occupied)

    def admits(self, upstream: str, size: int, *, held: int, free: int) -> bool:
        """Return True if a download of ``size`` bytes fits beside those already announced.

        ``free`` disk bytes are not used by anything. Announced sizes evict nothing: they only
        keep downloads of the same upstream from all beginning and none fitting.
        """
        occupied = self._occupied[upstream]
        most = max(free + occupied, self._share * (held + occupied))
        return self._announced[upstream] + disk_bytes(size) <= most
