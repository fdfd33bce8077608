from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import errors
from proxy.errors import RegistryError
from proxy.names import Digest
from proxy.policy import Action, Rule, decide, on_failure
from proxy.records import Descriptor, TagRecord

RULE = Rule(tag_ttl=300, stale_while_revalidate=3600, stale_if_error=86400, negative_ttl=30)
NOW = 1_700_000_000.0
durations = st.floats(0, 1e9) | st.just(inf)


def checked(seconds_ago: float) -> TagRecord:
    return TagRecord(Descriptor("", Digest(""), 0), NOW - seconds_ago)


@pytest.mark.parametrize(
    ("age", "action"),
    [
        (0, Action.SERVE),
        (299, Action.SERVE),
        (300, Action.SERVE_THEN_CHECK),
        (3899, Action.SERVE_THEN_CHECK),
        (3900, Action.CHECK),
        (1e8, Action.CHECK),
        (-1, Action.CHECK),
    ],
)
def test_age_decides(age: float, action: Action) -> None:
    assert decide(checked(age), RULE, NOW) is action


def test_nothing_known_is_a_miss() -> None:
    assert decide(None, RULE, NOW) is Action.MISS


@given(st.floats(-1e9, 1e9), durations, durations)
def test_offline_always_serves_and_never_checks(age: float, ttl: float, swr: float) -> None:
    rule = Rule(ttl, swr, 0, 0, offline=True)
    assert decide(checked(age), rule, NOW) is Action.SERVE


@given(st.floats(0, 1e9), durations, durations)
def test_older_is_never_served_more_freely(age: float, ttl: float, swr: float) -> None:
    rule = Rule(ttl, swr, 0, 0)
    order = [Action.SERVE, Action.SERVE_THEN_CHECK, Action.CHECK]
    younger, older = decide(checked(age), rule, NOW), decide(checked(age + 60), rule, NOW)
    assert order.index(older) >= order.index(younger)


@pytest.mark.parametrize(
    "error",
    [
        errors.UpstreamUnavailable("x"),
        errors.UpstreamTimeout("x"),
        errors.TooManyRequests("x"),
        errors.CredentialsRejected("x"),
        errors.ContentMismatch("x"),
    ],
)
def test_a_failure_is_covered_by_the_last_good_copy(error: RegistryError) -> None:
    assert on_failure(checked(86_700), RULE, NOW, error) is Action.SERVE
    assert on_failure(checked(86_701), RULE, NOW, error) is Action.MISS
    assert on_failure(None, RULE, NOW, error) is Action.MISS


@pytest.mark.parametrize(
    "error", [errors.Denied("x"), errors.ManifestUnknown("x"), errors.NameUnknown("x")]
)
def test_an_answer_is_passed_on(error: RegistryError) -> None:
    assert on_failure(checked(1), RULE, NOW, error) is Action.MISS


def test_forever_is_forever() -> None:
    rule = Rule(300, 0, inf, 30)
    assert on_failure(checked(1e9), rule, NOW, errors.UpstreamTimeout("x")) is Action.SERVE
