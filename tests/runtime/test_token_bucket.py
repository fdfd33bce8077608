"""The token bucket against a model that counts exactly."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from proxy.runtime.token_bucket import TokenBucket

STEPS = st.lists(
    st.tuples(
        st.sampled_from(("wait", "take", "ask", "give back", "change")),
        st.integers(0, 64).map(lambda n: n / 8),
    ),
    max_size=60,
)


class Naive:
    """Remembers what it holds as a fraction, and advances it by the eighth of a second."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate, self.burst, self.held = rate, burst, Fraction(burst)

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 8)):
            self.held = min(Fraction(self.burst), self.held + Fraction(self.rate, 8))

    def wait(self) -> float:
        return float(max(Fraction(0), -self.held / self.rate))


@given(rate=st.integers(1, 50), burst=st.integers(1, 100), steps=STEPS)
def test_a_bucket_agrees_with_a_model_that_counts(
    rate: int, burst: int, steps: list[tuple[str, float]]
) -> None:
    now, naive = 0.0, Naive(rate, burst)
    bucket = TokenBucket(rate, burst, now)
    for step, number in steps:
        match step:
            case "wait":
                now += number
                naive.pass_time(number)
            case "take":
                naive.held -= Fraction(number)
                assert abs(bucket.take(number, now) - naive.wait()) < 1e-6
            case "ask":
                missing = (Fraction(number) - naive.held) / naive.rate
                assert abs(bucket.seconds_until(number, now) - max(0, float(missing))) < 1e-6
            case "give back":
                bucket.seconds_until(0, now)
                bucket.refund(number)
                naive.held = min(Fraction(naive.burst), naive.held + Fraction(number))
            case "change":
                naive.rate, naive.burst = int(number) + 1, int(number * 2) + 1
                naive.held = min(naive.held, Fraction(naive.burst))
                bucket.change(naive.rate, naive.burst, now)
        if abs(float(naive.held) - naive.burst) > 1e-6:
            assert not bucket.is_full(now)


@given(
    rate=st.integers(1, 50),
    burst=st.integers(1, 100),
    gaps=st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=100),
)
def test_whoever_waits_as_told_never_exceeds_rate_and_burst(
    rate: int, burst: int, gaps: list[float]
) -> None:
    """Any window of time sees at most the burst and what its seconds are worth, in order."""
    bucket, now = TokenBucket(rate, burst, 0.0), 0.0
    due: list[float] = []
    for gap in gaps:
        now += gap
        due.append(now + bucket.take(1, now))
    assert due == sorted(due)
    for first in range(len(due)):
        for last in range(first, len(due)):
            allowed = burst + (due[last] - due[first]) * rate
            assert last - first + 1 <= allowed + 1 + 1e-6


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(1, 1, 100.0)
    bucket.take(1, 100.0)
    assert bucket.seconds_until(1, 50.0) == 1
    assert bucket.seconds_until(1, 100.5) == 0.5
