import json

import pytest

from benchmarks.compare import losses
from benchmarks.plots import svg
from benchmarks.report import number, read_json, write_json
from benchmarks.rows import Row, Target, at_least, at_most
from benchmarks.soak import Reading, growth


def row(ours: list[float], theirs: list[float], target: Target | None, key: str = "k") -> Row:
    return Row(key, "work", "s", ours, "rival" if theirs else "", theirs, target)


def test_a_ratio_is_the_median_of_the_ratios_of_rounds():
    measured = row([10, 40, 90], [10, 20, 30], at_least(2))
    assert measured.value == 2  # of 1, 2, 3; the ratio of the medians is 2 as well, that of
    assert row([10, 100, 20], [1, 50, 40], at_least(2)).value == 2  # these medians would be 0.5


def test_without_a_rival_the_value_is_the_median_of_ours():
    assert row([3, 1, 2], [], at_most(2)).value == 2


@pytest.mark.parametrize(
    ("target", "value", "reached"),
    [
        (at_least(2), 2.0, True),
        (at_least(2), 1.9, False),
        (at_most(2), 2.0, True),
        (at_most(2), 2.1, False),
        (None, 1.0, None),
    ],
)
def test_a_target_is_reached_in_its_own_direction(target, value, reached):
    assert row([value], [1], target).is_reached is reached


@pytest.mark.parametrize(
    ("target", "value", "progress"), [(at_least(2), 4.0, 2.0), (at_most(2), 4.0, 0.5)]
)
def test_progress_is_above_one_when_it_is_better_than_promised(target, value, progress):
    assert row([value], [1], target).progress == progress


@pytest.mark.parametrize(
    ("target", "now", "is_lost"),
    [
        (at_least(5), 8.4, True),
        (at_least(5), 8.5, True),
        (at_least(5), 8.6, False),
        (at_least(5), 20, False),
        (at_most(5), 11.6, True),
        (at_most(5), 11.5, True),
        (at_most(5), 11.4, False),
        (at_most(5), 1, False),
        (None, 1, False),
        (None, 100, False),
    ],
)
def test_a_ratio_that_is_15_percent_worse_than_10_is_a_loss(target, now, is_lost):
    found = losses([row([10], [1], target)], [row([now], [1], target)])
    assert list(found) == (["k"] if is_lost else [])


@pytest.mark.parametrize(
    ("before", "now", "is_lost"), [(10, 19, False), (10, 21, True), (30, 60, False)]
)
def test_without_a_rival_only_a_target_can_be_lost(before, now, is_lost):
    target = at_most(20)
    assert bool(losses([row([before], [], target)], [row([now], [], target)])) is is_lost


def test_what_is_not_measured_any_more_is_lost():
    old = row([10], [1], at_least(5))
    assert list(losses([old], [])) == ["k"]
    assert list(losses([old], [row([10], [], at_least(5))])) == ["k"]


def test_what_is_new_is_no_loss():
    assert losses([], [row([1], [10], at_least(5))]) == {}


def test_rows_survive_their_file(tmp_path):
    rows = [row([1.5, 2], [3, 4], at_most(0.5)).of("case"), row([1], [], None, "other")]
    write_json(tmp_path / "rows.json", rows, {"machine": {}})
    assert read_json(tmp_path / "rows.json") == rows
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["reached"] is True


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (99.94, "99.9"), (1.234, "1.23"), (0, "0")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_plot_says_what_is_reached_and_what_is_not():
    drawn = svg("Warm & cold", [row([3], [1], at_least(2)), row([3], [1], at_most(2))])
    assert drawn.count('class="reached"') == drawn.count('class="missed"') == 1
    assert "Warm &amp; cold" in drawn


def readings(rss: list[float], descriptors: list[int]) -> list[Reading]:
    pairs = zip(rss, descriptors, strict=True)
    return [Reading(n, mb, open_, 10, 0, 0) for n, (mb, open_) in enumerate(pairs)]


def test_growth_is_told_and_a_burst_is_not():
    level, burst = [100.0] * 20, [100.0] * 10 + [500.0] + [100.0] * 9
    few = [50] * 20
    assert growth(readings(level, few)) == []
    assert growth(readings(burst, few)) == []
    assert growth(readings([*level[1:], 500.0], few)) == []
    assert growth(readings([100 + 2.0 * n for n in range(20)], few))
    assert growth(readings(level, [50 + 2 * n for n in range(20)]))
    assert growth(readings([1.0], [1]))  # nothing can be said
