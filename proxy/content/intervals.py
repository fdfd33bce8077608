"""The received bytes of a growing blob. Pure state."""

from bisect import bisect_left, bisect_right


class Intervals:
    """Bytes received in any order, as intervals with gaps between them.

    ``contiguous`` is the end of the interval that begins at byte 0: readers can read up to there.
    ``count`` bytes have been received in all, in ``len()`` intervals.
    """

    def __init__(self) -> None:
        self.contiguous = 0
        self.count = 0
        self._starts: list[int] = []  # of the intervals behind the first gap
        self._ends: list[int] = []

    def __len__(self) -> int:
        return (self.contiguous > 0) + len(self._starts)

    @property
    def highest(self) -> int:
        """The end of the last interval."""
        return self._ends[-1] if self._ends else self.contiguous

    def add(self, start: int, end: int) -> None:
        """Add bytes ``start`` to ``end``; those that are already here count once."""
        if not self._starts and start == self.contiguous:  # nearly every call
            self.count += end - start
            self.contiguous = end
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self.count -= sum(self._ends[first:last]) - sum(self._starts[first:last])
        if start <= self.contiguous:
            self.count += max(0, end - self.contiguous)
            self.contiguous = max(self.contiguous, end)
            self._starts[first:last] = self._ends[first:last] = []
        else:
            self.count += end - start
            self._starts[first:last], self._ends[first:last] = [start], [end]
