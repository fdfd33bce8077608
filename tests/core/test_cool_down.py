"""Which digest of a history is old enough, or was there at a moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.cool_down import CoolDown, at, choose, show_time
from proxy.core.names import Digest
from proxy.core.records import TagHistoryEntry

DAY = 86400.0
RULE = CoolDown(3 * DAY)
A, B, C = (Digest(f"sha256:{letter * 64}") for letter in "abc")


def entry(digest: Digest, first: float, last: float) -> TagHistoryEntry:
    return TagHistoryEntry(digest, first * DAY, last * DAY)


@pytest.mark.parametrize(
    ("history", "now", "digest", "until"),
    [
        ([entry(A, 1, 10)], 10, A, None),
        ([entry(A, 1, 2)], 2, None, 4),
        ([entry(A, 1, 9), entry(B, 10, 11)], 11, A, 13),
        ([entry(A, 1, 9), entry(B, 10, 13)], 13, B, None),
        ([entry(A, 1, 9), entry(B, 10, 11), entry(C, 12, 12)], 12, A, 15),
        ([entry(A, 1, 1), entry(B, 10, 10)], 10, None, 13),
        ([entry(A, 1, 9), entry(B, 10, 11), entry(A, 12, 12)], 12, A, None),
        ([entry(A, 0, 9)], 9, None, 3),
    ],
    ids=[
        *("old enough", "first sight", "moved lately", "aged", "replaced before its time"),
        *("seen for a moment only", "moved back", "unknown since when"),
    ],
)
def test_the_newest_that_has_been_there_for_long_enough(
    history: list[TagHistoryEntry], now: float, digest: Digest | None, until: float | None
) -> None:
    found = choose(history, now * DAY, RULE, trusted_for=60.0)
    assert found == (digest, None if until is None else until * DAY)


@given(
    first=st.floats(1, 100), seen=st.floats(0, 10), asked=st.floats(0, 10), moved=st.floats(0, 100)
)
def test_what_was_served_stays_after_the_tag_moves(
    first: float, seen: float, asked: float, moved: float
) -> None:
    trusted = DAY
    last = first + seen
    now = last + min(asked, 1.0)  # later a check would have come before
    before = choose([entry(A, first, last)], now * DAY, RULE, trusted)
    history = [entry(A, first, last), entry(B, now + moved, now + moved)]
    after = choose(history, (now + moved) * DAY, RULE, trusted)
    if before.digest is not None:
        assert after.digest == A


def test_a_moment_of_the_history() -> None:
    history = [entry(A, 0, 1), entry(A, 2, 3), entry(B, 5, 6)]
    found = [at(history, day * DAY) for day in (1, 2, 4, 5, 9)]
    assert found == [None, A, A, B, B]


def test_times_are_shown_in_utc() -> None:
    assert show_time(1790812800.0) == "2026-10-01T00:00:00Z"
    assert show_time(float("inf"))
