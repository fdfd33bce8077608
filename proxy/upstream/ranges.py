"""Assigns bytes of a body to connections. Pure state, no I/O."""

import math
from typing import NamedTuple


class SplitPolicy(NamedTuple):
    """Parameters for cutting a large body. A body below ``start_from`` bytes is not cut.

    ``connections`` is the largest number at a time.
    """

    connections: int
    start_from: int

    @property
    def smallest(self) -> int:
        """Bytes below which another request costs more than it brings."""
        return max(1, self.start_from // 8)

    @property
    def largest(self) -> int:
        """Bytes above which readers would wait too long for the bytes behind a piece."""
        return max(1, self.start_from // 2)


class ByteRange:
    """Bytes ``position`` to ``stop`` of a body that one connection has still to fetch."""

    __slots__ = ("position", "stop")

    def __init__(self, position: int, stop: float) -> None:
        self.position = position
        self.stop = stop

    def __repr__(self) -> str:
        return f"<ByteRange {self.position}-{self.stop}>"


class MissingRanges:
    """The missing bytes of a body of ``size`` bytes (infinity: unknown)."""

    def __init__(self, size: float, pieces: SplitPolicy, start: int = 0) -> None:
        self._pieces = pieces
        self._gaps: list[ByteRange] = [ByteRange(start, size)] if size > start else []
        self._taken: list[ByteRange] = []

    @property
    def is_done(self) -> bool:
        """Nothing is left to fetch."""
        return not self._gaps and not self._taken

    def claim(self, workers: int) -> ByteRange | None:
        """Return the first bytes without a connection; None if none are worth a request.

        There are three cases. One worker alone takes a whole gap. Several share a gap in pieces
        that get smaller towards the end, so that all end at once. Without a gap, the longest range
        that is being fetched is cut in two, so that a slow connection does not end last.
        """
        if not self._gaps and not self._cut_longest():
            return None
        gap = self._gaps[0]
        length = gap.stop - gap.position
        if workers > 1:
            left = sum(gap.stop - gap.position for gap in self._gaps)
            fair = left / (2 * workers)
            length = min(length, max(self._pieces.smallest, min(self._pieces.largest, fair)))
        stop = gap.stop if math.isinf(length) else gap.position + int(length)
        if gap.stop - stop < self._pieces.smallest:
            stop = gap.stop
        byte_range = ByteRange(gap.position, stop)
        if stop == gap.stop:
            self._gaps.pop(0)
        else:
            gap.position = int(stop)
        self._taken.append(byte_range)
        return byte_range

    def release(self, byte_range: ByteRange) -> None:
        """Make the rest of a range a gap again."""
        self._taken.remove(byte_range)
        if byte_range.position < byte_range.stop:
            self._gaps.append(ByteRange(byte_range.position, byte_range.stop))
            self._gaps.sort(key=lambda gap: gap.position)

    def _cut_longest(self) -> bool:
        """Make the far part of the longest range that is being fetched a gap."""
        longest = max(
            self._taken, key=lambda byte_range: byte_range.stop - byte_range.position, default=None
        )
        if longest is None:
            return False
        left = longest.stop - longest.position
        if left < 2 * self._pieces.smallest or math.isinf(left):
            return False
        kept = max(self._pieces.smallest, min(self._pieces.largest, left / 2))
        cut = longest.position + int(kept)
        self._gaps.append(ByteRange(cut, longest.stop))
        longest.stop = cut
        return True
