"""The real process, killed repeatedly under load; `make soak` runs longer, and cuts the power."""

import pytest

from tests.crash.harness import BUDGET, FEWEST, Plan, Report, run
from tests.crash.moments import Moment

SEED = 1846  # its first lives end at six different moments
KILLS = 20
SECONDS = 30.0  # a machine on which this is not enough for all of them has done its share


@pytest.mark.timeout(2 * SECONDS + 240)
async def test_a_fixed_course_of_kills() -> None:
    report = await run(Plan(seed=SEED, kills=KILLS, seconds=SECONDS))
    assert_not_idle(report)


def assert_not_idle(report: Report) -> None:
    """Fail when the kills fell into nothing, so that they proved nothing."""
    assert report.kills.total() >= FEWEST, report
    assert report.answers["whole"] > report.kills.total(), report
    assert report.answers["broken"] > 0, report
    assert report.evictions > 0 or report.fullest < 0.8 * BUDGET, report  # on a slow machine
    assert report.confirmed > 0, report
    assert report.looks > report.kills.total(), report
    assert report.met[Moment.STORED] + report.met[Moment.EVICTED] > 0, report
