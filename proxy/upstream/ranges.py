"""Which bytes of a body are whose to fetch. Pure state, no I/O."""

import math
from typing import NamedTuple


class Pieces(NamedTuple):
    """How a large body is cut: into how many connections at the most, into pieces of which bytes.

    A body shorter than ``start_from`` bytes is not cut at all.
    """

    connections: int
    start_from: int

    @property
    def smallest(self) -> int:
        """Bytes below which another request costs more than it brings."""
        return max(1, self.start_from // 8)

    @property
    def largest(self) -> int:
        """Bytes above which readers would wait for long for what lies behind a piece."""
        return max(1, self.start_from // 2)


class Span:
    """Bytes ``position`` to ``stop`` of a body, which one connection fetches.

    ``reached`` is up to where they have been received, ``position`` up to where they are safe.
    """

    __slots__ = ("position", "reached", "stop")

    def __init__(self, position: int, stop: float) -> None:
        self.position = position
        self.reached = position
        self.stop = stop

    def __repr__(self) -> str:
        return f"<Span {self.position}-{self.stop}>"


class Spans:
    """Everything that is still to be fetched of a body of ``size`` bytes, infinity if not known."""

    def __init__(self, size: float, pieces: Pieces) -> None:
        self._pieces = pieces
        self._gaps: list[Span] = [Span(0, size)] if size > 0 else []
        self._taken: list[Span] = []

    @property
    def is_done(self) -> bool:
        """Nothing is left to fetch."""
        return not self._gaps and not self._taken

    def claim(self, hands: int) -> Span | None:
        """Return the first bytes that nobody fetches; None when there are none worth a request.

        ``hands`` is how many fetch: one alone takes a whole gap, several share in pieces that get
        smaller towards the end, so that all end at once. Without a gap, the longest span that is
        being fetched is cut in two.
        """
        if not self._gaps and not self._cut_longest():
            return None
        gap = self._gaps[0]
        length = gap.stop - gap.position
        if hands > 1:
            left = sum(gap.stop - gap.position for gap in self._gaps)
            fair = left / (2 * hands)
            length = min(length, max(self._pieces.smallest, min(self._pieces.largest, fair)))
        stop = gap.stop if math.isinf(length) else gap.position + int(length)
        if gap.stop - stop < self._pieces.smallest:
            stop = gap.stop
        span = Span(gap.position, stop)
        if stop == gap.stop:
            self._gaps.pop(0)
        else:
            gap.position = int(stop)
        self._taken.append(span)
        return span

    def give_back(self, span: Span) -> None:
        """Let others fetch what is left of a span, if anything is."""
        self._taken.remove(span)
        if span.position < span.stop:
            self._gaps.append(Span(span.position, span.stop))
            self._gaps.sort(key=lambda gap: gap.position)

    def _cut_longest(self) -> bool:
        """Make the far part of the longest span that is being fetched a gap."""
        longest = max(self._taken, key=lambda span: span.stop - span.reached, default=None)
        if longest is None:
            return False
        left = longest.stop - longest.reached
        if left < 2 * self._pieces.smallest or math.isinf(left):
            return False
        kept = max(self._pieces.smallest, min(self._pieces.largest, left / 2))
        cut = longest.reached + int(kept)
        self._gaps.append(Span(cut, longest.stop))
        longest.stop = cut
        return True
