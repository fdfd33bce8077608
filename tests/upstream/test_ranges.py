"""How a body is cut into pieces: everything is fetched once, whatever happens in between."""

import random

from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.ranges import Pieces, Span, Spans

FOUR = Pieces(connections=4, start_from=80)


def lengths(spans: Spans, workers: int) -> list[float]:
    """Claim everything, each span fetched to its end before the next is claimed."""
    found = []
    while (span := spans.claim(workers)) is not None:
        found.append(span.stop - span.position)
        span.position = int(span.stop)
        spans.give_back(span)
    return found


def test_one_alone_takes_everything() -> None:
    assert lengths(Spans(1000, FOUR), workers=1) == [1000]


def test_several_share_in_pieces_that_get_smaller() -> None:
    cut = lengths(Spans(1000, FOUR), workers=4)
    assert sum(cut) == 1000
    assert cut[0] == FOUR.largest
    assert cut == sorted(cut, reverse=True) or cut[-1] < 2 * FOUR.smallest
    assert all(FOUR.smallest <= length <= FOUR.largest for length in cut)


def test_a_body_without_a_size_is_one_span_and_is_not_cut() -> None:
    spans = Spans(float("inf"), FOUR)
    span = spans.claim(1)
    assert span is not None
    assert span.stop == float("inf")
    assert spans.claim(2) is None


def test_an_empty_body_is_done_at_once() -> None:
    assert Spans(0, FOUR).is_done
    assert Spans(0, FOUR).claim(1) is None


def test_a_worker_gets_the_far_part_of_the_only_span() -> None:
    spans = Spans(1000, FOUR)
    first = spans.claim(1)
    assert first is not None
    first.position = 150
    helper = spans.claim(2)
    assert helper is not None
    assert first.stop == helper.position == 150 + FOUR.largest
    assert helper.stop == helper.position + FOUR.largest


def test_what_has_been_received_is_not_fetched_by_another() -> None:
    spans = Spans(50, FOUR)
    first = spans.claim(1)
    assert first is not None
    first.position = 31  # 19 bytes are left, and a piece has 10
    assert spans.claim(2) is None


def test_what_is_given_back_comes_next_from_its_last_safe_byte() -> None:
    spans = Spans(1000, FOUR)
    one, other = spans.claim(2), spans.claim(2)
    assert one is not None
    assert other is not None
    one.position = 7
    spans.give_back(one)
    again = spans.claim(2)
    assert again is not None
    assert again.position == 7
    assert not spans.is_done


@given(st.integers(1, 3000), st.integers(1, 200), st.integers(0, 2**32))
def test_every_byte_is_fetched_exactly_once(size: int, start_from: int, seed: int) -> None:
    """Spans grow, break off, are given back and cut, in any order."""
    chance = random.Random(seed)
    spans = Spans(size, Pieces(4, start_from))
    fetched = bytearray(size)
    busy: list[Span] = []
    while not spans.is_done:
        if len(busy) < 4 and chance.random() < 0.5:
            span = spans.claim(len(busy) + 1)
            if span is not None:
                busy.append(span)
        if not busy:
            continue
        span = chance.choice(busy)
        count = min(chance.randint(1, 50), int(span.stop - span.position))
        for at in range(span.position, span.position + count):
            fetched[at] += 1
        span.position += count
        if span.position >= span.stop or chance.random() < 0.1:
            busy.remove(span)
            spans.give_back(span)
    assert set(fetched) == {1}
