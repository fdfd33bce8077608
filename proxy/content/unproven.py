"""The space that each upstream's unproven downloads take. Pure state.

Until the last byte has arrived, a body and its announced size are only an upstream's claim. An
endless body must not evict content that others use. So unproven bytes may take all free space, and
beyond it evict content until they make up a share of the held content; then the download is not
stored. This limits parallel bodies, because their bytes are added up, and sequential ones, because
each finds the space that the previous one has left.
"""

from collections import Counter

from proxy.core.records import disk_bytes


class Unproven:
    """Disk bytes that the unproven downloads of each upstream occupy, and those they announce."""

    def __init__(self, share: float) -> None:
        """``share`` (0 to 1) of held content may be evicted for one upstream."""
        self._share = share
        self._occupied: Counter[str] = Counter()
        self._announced: Counter[str] = Counter()
        self.leads = 0
        """Reserved bytes that have not arrived: they are still free on the disk."""

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

        ``free`` disk bytes are unused. Announced sizes evict nothing: they only prevent downloads
        of the same upstream from all starting when none would fit.
        """
        occupied = self._occupied[upstream]
        most = max(free + occupied, self._share * (held + occupied))
        return self._announced[upstream] + disk_bytes(size) <= most
