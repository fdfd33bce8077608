"""The power goes at random moments: what has a blob's name is that blob, synced to the last byte."""

import random

from tests.crash.harness import Plan, run

CUTS = 12
SECONDS = 60.0


async def test_power_cuts() -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"to see it again: python -m tests.crash --seed {seed} --kills {CUTS} --cuts-power")  # noqa: T201
    report = await run(Plan(seed=seed, kills=CUTS, seconds=SECONDS, cuts_power=True))
    assert report.kills.total() >= 3, report
    assert report.answers["whole"] > 0, report
