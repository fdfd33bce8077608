"""The known rate limit, and how long it is valid."""

import pytest

from proxy.upstream.budget import DEFAULT_WINDOW, Budget
from tests.fakes.clock import Clock


@pytest.fixture
def budget(clock: Clock) -> Budget:
    return Budget(clock)


def note(budget: Budget, limit: str, remaining: str, source: str = "192.0.2.1") -> None:
    budget.note({"ratelimit-limit": limit, "ratelimit-remaining": remaining}, source)


def test_without_headers_there_is_no_limit(budget: Budget) -> None:
    budget.note({}, "")
    assert (budget.share, budget.is_empty, budget.refill) == (None, False, 0.0)
    budget.note({"ratelimit-limit": "100;w=60"}, "")
    assert budget.share is None


@pytest.mark.parametrize(
    ("limit", "remaining", "window", "share"),
    [
        ("100;w=21600", "76;w=21600", 21600, 0.76),
        ("100;w=60", "76", 60, 0.76),
        ("100", "76 ; w=30", 30, 0.76),
        ("100;w=60", "76;w=30", 30, 0.76),
        ("100", "76", DEFAULT_WINDOW, 0.76),
        ("100", "150", DEFAULT_WINDOW, 1.0),
        ("0", "0", DEFAULT_WINDOW, 0.0),
        ("100, 100;w=60", "76, 76;w=60", DEFAULT_WINDOW, 0.76),
        ("-1", "1", None, None),
        ("many", "1", None, None),
    ],
)
def test_reports(
    budget: Budget, limit: str, remaining: str, window: float | None, share: float | None
) -> None:
    note(budget, limit, remaining)
    assert budget.share == share
    if window is not None:
        assert (budget.window, budget.source) == (window, "192.0.2.1")


def test_a_report_ends_with_its_window(budget: Budget, clock: Clock) -> None:
    note(budget, "10;w=60", "5;w=60")
    clock.advance(59)
    budget.note({}, "")
    assert budget.share == 0.5, "a response without headers changes nothing"
    clock.advance(1)
    assert budget.share is None


def test_an_empty_budget_is_full_again_a_window_after_it_was_empty_first(
    budget: Budget, clock: Clock
) -> None:
    note(budget, "10;w=60", "0;w=60")
    assert (budget.is_empty, budget.refill, budget.share) == (True, 60, 0.0)
    clock.advance(20)
    note(budget, "10;w=60", "0;w=60")
    assert (budget.is_empty, budget.refill) == (True, 40)
    clock.advance(40)
    assert (budget.is_empty, budget.refill) == (False, 0)


@pytest.mark.parametrize("headers", [{}, {"ratelimit-limit": "10", "ratelimit-remaining": "1"}])
def test_an_answer_that_was_not_due_ends_it(budget: Budget, headers: dict[str, str]) -> None:
    note(budget, "10;w=60", "0;w=60")
    budget.note(headers, "")
    assert (budget.is_empty, budget.refill) == (False, 0)
    assert (budget.share is None) == (not headers)
    note(budget, "10;w=60", "0;w=60")
    assert budget.is_empty


def test_the_source_is_bounded_and_may_be_missing(budget: Budget) -> None:
    note(budget, "10", "1", "x" * 1000)
    assert budget.source == "x" * 64
    note(budget, "10", "1", "")
    assert budget.source is None


def test_a_report_of_another_replica_counts_if_it_is_newer(clock: Clock) -> None:
    first, second = Budget(clock), Budget(clock)
    note(first, "100;w=600", "40")
    clock.advance(10)
    second.apply_shared_state(first.shared_state(), 2.0)
    assert (second.limit, second.remaining, second.source) == (100, 40, "192.0.2.1")
    note(second, "100;w=600", "30")
    second.apply_shared_state(first.shared_state(), 0.0)
    assert second.remaining == 30
    first.apply_shared_state(second.shared_state(), 0.0)
    assert first.remaining == 30


def test_the_limit_of_another_address_is_not_taken_over(clock: Clock) -> None:
    first, second = Budget(clock), Budget(clock)
    note(first, "100;w=600", "40")
    clock.advance(1)
    note(second, "100;w=600", "90", "192.0.2.2")
    first.apply_shared_state(second.shared_state(), 0.0)
    assert first.remaining == 40


@pytest.mark.parametrize(
    "told", [{}, {"limit": "x"}, {"limit": 5, "remaining": 1}, {"limit": 5, "remaining": None}]
)
def test_a_malformed_report_is_ignored(clock: Clock, told: dict[str, object]) -> None:
    budget = Budget(clock)
    budget.apply_shared_state(told, 0.0)
    assert budget.limit is None
