"""How a body is cut into pieces: everything is fetched once, whatever happens in between."""

import random

from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.ranges import ByteRange, MissingRanges, SplitPolicy

FOUR = SplitPolicy(connections=4, start_from=80)


def lengths(ranges: MissingRanges, workers: int) -> list[float]:
    """Claim everything, each span fetched to its end before the next is claimed."""
    found = []
    while (byte_range := ranges.claim(workers)) is not None:
        found.append(byte_range.stop - byte_range.position)
        byte_range.position = int(byte_range.stop)
        ranges.release(byte_range)
    return found


def test_one_alone_takes_everything() -> None:
    assert lengths(MissingRanges(1000, FOUR), workers=1) == [1000]


def test_several_share_in_pieces_that_get_smaller() -> None:
    cut = lengths(MissingRanges(1000, FOUR), workers=4)
    assert sum(cut) == 1000
    assert cut[0] == FOUR.largest
    assert cut == sorted(cut, reverse=True) or cut[-1] < 2 * FOUR.smallest
    assert all(FOUR.smallest <= length <= FOUR.largest for length in cut)


def test_a_body_without_a_size_is_one_span_and_is_not_cut() -> None:
    ranges = MissingRanges(float("inf"), FOUR)
    byte_range = ranges.claim(1)
    assert byte_range is not None
    assert byte_range.stop == float("inf")
    assert ranges.claim(2) is None


def test_an_empty_body_is_done_at_once() -> None:
    assert MissingRanges(0, FOUR).is_done
    assert MissingRanges(0, FOUR).claim(1) is None


def test_a_worker_gets_the_far_part_of_the_only_span() -> None:
    ranges = MissingRanges(1000, FOUR)
    first = ranges.claim(1)
    assert first is not None
    first.position = 150
    helper = ranges.claim(2)
    assert helper is not None
    assert first.stop == helper.position == 150 + FOUR.largest
    assert helper.stop == helper.position + FOUR.largest


def test_what_has_been_received_is_not_fetched_by_another() -> None:
    ranges = MissingRanges(50, FOUR)
    first = ranges.claim(1)
    assert first is not None
    first.position = 31  # 19 bytes are left, and a piece has 10
    assert ranges.claim(2) is None


def test_what_is_given_back_comes_next_from_its_last_safe_byte() -> None:
    ranges = MissingRanges(1000, FOUR)
    one, other = ranges.claim(2), ranges.claim(2)
    assert one is not None
    assert other is not None
    one.position = 7
    ranges.release(one)
    again = ranges.claim(2)
    assert again is not None
    assert again.position == 7
    assert not ranges.is_done


@given(st.integers(1, 3000), st.integers(1, 200), st.integers(0, 2**32))
def test_every_byte_is_fetched_exactly_once(size: int, start_from: int, seed: int) -> None:
    """MissingRanges grow, break off, are given back and cut, in any order."""
    chance = random.Random(seed)
    ranges = MissingRanges(size, SplitPolicy(4, start_from))
    fetched = bytearray(size)
    busy: list[ByteRange] = []
    while not ranges.is_done:
        if len(busy) < 4 and chance.random() < 0.5:
            byte_range = ranges.claim(len(busy) + 1)
            if byte_range is not None:
                busy.append(byte_range)
        if not busy:
            continue
        byte_range = chance.choice(busy)
        count = min(chance.randint(1, 50), int(byte_range.stop - byte_range.position))
        for at in range(byte_range.position, byte_range.position + count):
            fetched[at] += 1
        byte_range.position += count
        if byte_range.position >= byte_range.stop or chance.random() < 0.1:
            busy.remove(byte_range)
            ranges.release(byte_range)
    assert set(fetched) == {1}
