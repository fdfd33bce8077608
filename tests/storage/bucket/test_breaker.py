"""For how long a bucket that fails is skipped."""

import time

import pytest
from structlog.testing import capture_logs

from proxy.core.errors import UpstreamUnavailable
from proxy.storage.bucket.breaker import LONGEST_PAUSE, Breaker


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    moment = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


def test_pauses_grow_and_end_with_an_answer(now: list[float]) -> None:
    breaker = Breaker("test", "reading")
    breaker.enter()
    pauses = []
    for _ in range(8):
        breaker.failed("away")
        with pytest.raises(UpstreamUnavailable):
            breaker.enter()
        pauses.append(breaker.seconds_left)
        now[0] += breaker.seconds_left
        breaker.enter()
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    breaker.succeeded()
    assert breaker.problem is None
    breaker.enter()
    breaker.enter()
    breaker.failed("away")
    assert breaker.seconds_left == 1


def test_after_a_pause_one_request_probes(now: list[float]) -> None:
    breaker = Breaker("test", "reading")
    breaker.failed("away")
    now[0] += 1
    breaker.enter()
    with pytest.raises(UpstreamUnavailable):
        breaker.enter()
    now[0] += 2
    breaker.enter()


def test_each_problem_is_logged_once(now: list[float]) -> None:
    breaker = Breaker("test", "reading")
    with capture_logs() as logs:
        for problem in ("away", "away", "slow", "away"):
            breaker.failed(problem)
        breaker.succeeded()
        breaker.succeeded()
    assert [one.get("reason") for one in logs] == ["away", "slow", "away", None]
