"""Cool-down, circuits and retry delays as pure state. ``test_client`` uses them through sockets."""

import random

import pytest

from proxy.core.errors import (
    BlobUnknown,
    RegistryError,
    TooManyRequests,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.settings import Patience
from proxy.upstream.circuit_breaker import MAX_COOL_DOWN, MAX_PAUSE, CircuitBreaker, CircuitState
from tests.fakes.clock import Clock

SETTINGS = Patience.model_validate({"retries": 2, "failures": 3, "pause": "5s", "cool_down": "30s"})
DOWN = UpstreamUnavailable("down")
ITEM, OTHER = "library/app manifests latest", "library/other manifests latest"
PULL, CHECK = "GET manifests", "HEAD manifests"


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("hub", SETTINGS, clock)


def refusal(breaker: CircuitBreaker, kind: str = PULL, item: str = ITEM) -> RegistryError | None:
    try:
        breaker.admit(kind, item)
    except RegistryError as error:
        return error
    return None


def test_a_rate_limit_cools_down_what_was_limited(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.record_failure(PULL, ITEM, TooManyRequests("slow down", retry_after=17))
    clock.advance(7)
    limited = refusal(breaker)
    assert isinstance(limited, TooManyRequests)
    assert limited.retry_after == pytest.approx(10)
    assert refusal(breaker, CHECK) is None
    clock.advance(10)
    assert refusal(breaker) is None


def test_a_rate_limit_without_an_end_has_ours(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.record_failure(PULL, ITEM, TooManyRequests("slow down"))
    clock.advance(29)
    assert refusal(breaker)
    clock.advance(1)
    assert refusal(breaker) is None


@pytest.mark.parametrize(("said", "wait"), [(0, 1), (0.5, 1), (1, 1), (2, 2)])
def test_a_rate_limit_lasts_a_second_at_least(
    breaker: CircuitBreaker, clock: Clock, said: float, wait: float
) -> None:
    error = TooManyRequests("slow down", retry_after=said)
    breaker.record_failure(PULL, ITEM, error)
    assert error.retry_after == wait
    clock.advance(wait - 0.1)
    assert refusal(breaker)
    clock.advance(0.1)
    assert refusal(breaker) is None


def test_the_pause_grows_up_to_its_bound(breaker: CircuitBreaker, clock: Clock) -> None:
    pauses = []
    for _ in range(8):
        breaker.record_failure(PULL, ITEM, DOWN)
        if error := refusal(breaker):
            pauses.append(error.retry_after)
            clock.advance(error.retry_after or 0)
            assert breaker.state is CircuitState.PROBING
    assert pauses == [5, 10, 20, 40, MAX_PAUSE, MAX_PAUSE]
    breaker.record_answer(ITEM)
    assert breaker.state is CircuitState.CLOSED
    assert breaker.is_up


def test_the_age_of_the_last_answer(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.record_failure(PULL, ITEM, DOWN)
    assert (breaker.seconds_since_answer, breaker.is_up) == (None, False)
    breaker.record_failure(PULL, ITEM, BlobUnknown("an answer"))
    clock.advance(7)
    assert (breaker.seconds_since_answer, breaker.is_up) == (7, True)


def test_an_endless_rate_limit_is_probed(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.record_failure(PULL, ITEM, TooManyRequests("slow down", retry_after=86400))
    clock.advance(MAX_COOL_DOWN)
    assert refusal(breaker) is None


def test_failures_in_a_row_open_the_circuit_and_one_probe_closes_it(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    for _ in range(3):
        assert refusal(breaker) is None
        breaker.record_failure(PULL, ITEM, DOWN)
    assert breaker.state is CircuitState.OPEN
    assert isinstance(refusal(breaker, CHECK), UpstreamUnavailable)
    clock.advance(5)
    assert refusal(breaker) is None, "the probe"
    assert refusal(breaker), "the others wait for it"
    breaker.record_failure(PULL, ITEM, UpstreamTimeout("still"))
    clock.advance(9.9)
    assert refusal(breaker), "the pause has doubled"
    clock.advance(0.2)
    assert refusal(breaker) is None
    breaker.record_answer(ITEM)
    assert refusal(breaker) is None
    assert breaker.state is CircuitState.CLOSED


@pytest.mark.parametrize("answer", [BlobUnknown("no"), None])
def test_any_answer_ends_a_row_of_failures(
    breaker: CircuitBreaker, answer: RegistryError | None
) -> None:
    for _ in range(10):
        breaker.record_failure(PULL, ITEM, DOWN)
        breaker.record_failure(PULL, ITEM, DOWN)
        if answer is None:
            breaker.record_answer(ITEM)
        else:
            breaker.record_failure(PULL, ITEM, answer)
    assert refusal(breaker) is None


def test_only_passing_failures_are_tried_again(
    breaker: CircuitBreaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share in (0, 1):
        monkeypatch.setattr(random, "uniform", lambda low, high, at=share: (low, high)[at])
        waits = [breaker.retry_delay(failures, DOWN) for failures in (1, 2, 3)]
        assert waits == [pytest.approx((0.1, 0.3)[share]), pytest.approx((0.2, 0.6)[share]), None]
    assert breaker.retry_delay(1, UpstreamUnavailable("x", retry_after=3)) == 3
    assert breaker.retry_delay(1, BlobUnknown("x")) is None
    assert breaker.retry_delay(1, UpstreamTimeout("x"))


def test_one_object_that_fails_does_not_take_the_upstream_away(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    broken = UpstreamUnavailable("500", is_answer=True)
    for _ in range(5):
        breaker.record_failure(PULL, ITEM, broken)
    assert refusal(breaker)
    assert refusal(breaker, item=OTHER) is None
    for number in range(2):
        breaker.record_failure(PULL, f"another {number}", broken)
    assert breaker.state is CircuitState.OPEN, "many objects that fail are an upstream that fails"
    clock.advance(5)
    breaker.record_answer(OTHER)
    assert refusal(breaker, item=OTHER) is None


def test_what_upstream_rejects_is_no_failure_of_its(breaker: CircuitBreaker) -> None:
    for _ in range(10):
        breaker.record_failure(PULL, ITEM, UpstreamRejected("400"))
    assert refusal(breaker) is None
    assert breaker.retry_delay(1, UpstreamRejected("400")) is None


def test_another_replica_s_cool_down_and_circuit_are_taken_over(clock: Clock) -> None:
    first, second = (CircuitBreaker("hub", SETTINGS, clock) for _ in range(2))
    first.record_failure(PULL, ITEM, TooManyRequests("slow down", retry_after=60))
    for number in range(3):
        first.record_failure(CHECK, f"{ITEM} {number}", DOWN)
    second.apply_shared_state(first.shared_state(), 1.0)
    limited = refusal(second)
    assert isinstance(limited, TooManyRequests)
    assert limited.retry_after == pytest.approx(59)
    assert isinstance(refusal(second, CHECK), UpstreamUnavailable)
    clock.advance(5)
    assert refusal(second, CHECK) is None, "the probe"
    second.record_answer(ITEM)
    first.apply_shared_state(second.shared_state(), 0.0)
    assert first.state is CircuitState.CLOSED


def test_an_older_failure_elsewhere_does_not_open_a_circuit(clock: Clock) -> None:
    first, second = (CircuitBreaker("hub", SETTINGS, clock) for _ in range(2))
    for number in range(3):
        first.record_failure(CHECK, f"{ITEM} {number}", DOWN)
    clock.advance(1)
    second.record_answer(ITEM)
    second.apply_shared_state(first.shared_state(), 0.0)
    assert second.state is CircuitState.CLOSED


@pytest.mark.parametrize(
    "told", [{}, {"cooling": 1}, {"cooling": {PULL: "x"}}, {"is_open": True, "failed_age": None}]
)
def test_a_malformed_state_is_ignored(breaker: CircuitBreaker, told: dict[str, object]) -> None:
    breaker.apply_shared_state(told, 0.0)
    assert refusal(breaker) is None
