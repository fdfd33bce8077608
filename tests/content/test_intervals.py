"""Bytes that come in any order are counted as a set would count them."""

from hypothesis import example, given
from hypothesis import strategies as st

from proxy.content.intervals import Intervals

PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=40)


@given(PIECES)
@example([(0, 2), (0, 1)])  # a part of the beginning comes again
@example([(0, 2), (5, 2), (1, 3)])
def test_stretches_agree_with_a_set_of_bytes(pieces: list[tuple[int, int]]) -> None:
    intervals, known = Intervals(), set[int]()
    for start, length in pieces:
        intervals.add(start, start + length)
        known |= set(range(start, start + length))
        assert intervals.count == len(known)
        assert intervals.highest == max(known) + 1
        assert intervals.contiguous == next(at for at in range(200) if at not in known)
        assert len(intervals) == sum(at - 1 not in known for at in known)
