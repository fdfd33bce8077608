from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import errors
from proxy.core.errors import RegistryError
from proxy.core.names import Tag
from proxy.core.policy import (
    Action,
    CacheDirective,
    Rule,
    cache_directive,
    decide,
    is_scarce,
    on_failure,
)

RULE = Rule(tag_ttl=300, stale_while_revalidate=3600, stale_if_error=86400, negative_ttl=30)
NOW = 1_700_000_000.0
durations = st.floats(0, 1e9) | st.just(inf)


def checked(seconds_ago: float) -> float:
    return NOW - seconds_ago


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


@pytest.mark.parametrize(
    "error", [errors.Denied("x"), errors.ManifestUnknown("x"), errors.NameUnknown("x")]
)
def test_an_answer_is_passed_on(error: RegistryError) -> None:
    assert on_failure(checked(1), RULE, NOW, error) is Action.MISS


def test_forever_is_forever() -> None:
    rule = Rule(300, 0, inf, 30)
    assert on_failure(checked(1e9), rule, NOW, errors.UpstreamTimeout("x")) is Action.SERVE


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, CacheDirective.ANY),
        ("", CacheDirective.ANY),
        ("max-age=60", CacheDirective.ANY),
        ("no-cache", CacheDirective.REVALIDATE),
        ("Max-Age=0", CacheDirective.REVALIDATE),
        ("no-store, no-cache", CacheDirective.REVALIDATE),
        ("only-if-cached", CacheDirective.ONLY_IF_CACHED),
        ("no-cache, only-if-cached", CacheDirective.ONLY_IF_CACHED),
    ],
)
def test_cache_control(header: str | None, expected: CacheDirective) -> None:
    assert cache_directive(header) is expected


def test_a_directive_beats_age() -> None:
    assert decide(checked(0), RULE, NOW, CacheDirective.REVALIDATE) is Action.CHECK
    assert decide(checked(1e8), RULE, NOW, CacheDirective.ONLY_IF_CACHED) is Action.SERVE
    assert decide(None, RULE, NOW, CacheDirective.ONLY_IF_CACHED) is Action.MISS


@pytest.mark.parametrize(
    ("keep", "age", "action"),
    [
        (0, 1, Action.MISS),
        (inf, 1e9, Action.SERVE),
        (100, 100, Action.SERVE),
        (100, 101, Action.MISS),
    ],
)
def test_c12_a_deleted_tag_is_kept_as_long_as_the_policy_says(
    keep: float, age: float, action: Action
) -> None:
    rule = Rule(10, 0, 0, 0, keep_deleted=keep)
    assert on_failure(checked(age), rule, NOW, errors.ManifestUnknown("gone")) is action


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_signature_tags_have_a_short_life_of_their_own(suffix: str) -> None:
    rule = Rule(300, 3600, inf, 30, signature_ttl=30)
    tag = Tag("sha256-" + "a" * 64 + suffix)
    assert decide(checked(29), rule.for_tag(tag, None), NOW) is Action.SERVE
    assert decide(checked(31), rule.for_tag(tag, None), NOW) is Action.CHECK
    assert rule.for_tag(Tag("sha256-abc" + suffix), None) == rule


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_less_is_left_the_longer_things_are_fresh(one: float, other: float) -> None:
    rule = Rule(300, 0, 0, 0)
    less, more = sorted((one, other))
    assert rule.for_tag(Tag("x"), less).tag_ttl >= rule.for_tag(Tag("x"), more).tag_ttl >= 300
    assert rule.for_tag(Tag("x"), None) == rule


def test_the_reserve_is_kept_for_what_is_not_held() -> None:
    rule = Rule(300, 0, 0, 0, rate_limit_reserve=0.1)
    assert [is_scarce(rule, share) for share in (None, 1.0, 0.11, 0.1, 0.0)] == [
        False, False, False, True, True,
    ]  # fmt: skip
