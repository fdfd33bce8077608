"""The room that downloads take whose bytes are not verified yet, by upstream. Pure state.

Until the last byte has arrived, a body and its announced size cannot be trusted, and an endless
body must not evict content that others use. So unproven bytes may take all free room, and beyond
that evict until they are a certain share of the content; then the download is not kept. This bounds
parallel bodies, because their bytes are added up, and bodies one after the other, because the next
one uses the room that the last one left.
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
        """What all upstreams occupy."""
        return self._occupied.total()

    def occupy(self, upstream: str, more: int) -> None:
        """Count ``more`` disk bytes; negative when they are given back."""
        self._occupied[upstream] += more

    def announce(self, upstream: str, size: int) -> None:
        """Count a download of ``size`` bytes that begins; negative when it ends."""
        self._announced[upstream] += size

    def may_evict(self, upstream: str, held: int) -> bool:
        """Return True if others' content may go for what an upstream occupies now.

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
