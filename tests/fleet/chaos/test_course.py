"""A short course with a fixed seed; `python -m tests.fleet.chaos --minutes 5` runs for longer."""

import json
import subprocess
import sys

import pytest

from tests.fleet.chaos.course import IN_BUCKET, times_lost
from tests.fleet.chaos.spells import Spell, Spells
from tests.parts.millpond import REPOSITORY_ROOT

SEED = 2
MINUTES = 0.6
WITHIN = 400


@pytest.mark.timeout(WITHIN + 20)
@pytest.mark.xdist_group("programs")
def test_a_fixed_course_of_chaos() -> None:
    words = ["--minutes", str(MINUTES), "--seed", str(SEED)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fleet.chaos", *words],
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.stdout, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert not report["wrong"], report
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(report["faults"]) > 3, report
    assert report["pulls"] > 50, report
    assert report["blobs"] + report["blobs_alone"] > 20, report


@pytest.mark.parametrize(
    ("size", "faults", "lost"),
    [
        (IN_BUCKET, [], 0),
        (IN_BUCKET, [("killed", "a", 110)], 0),
        (IN_BUCKET - 1, [("killed", "a", 110)], 1),
        (IN_BUCKET, [("killed", "a", 110), ("wiped", "a", 110)], 1),
        (IN_BUCKET, [("killed", "a", 110), ("wiped", "b", 110)], 1),
        (IN_BUCKET, [("cut from bucket", "a", 105), ("killed", "a", 110)], 1),
        (IN_BUCKET, [("bucket", "", 105), ("killed", "a", 110), ("killed", "b", 115)], 2),
        (IN_BUCKET, [("killed", "a", 110), ("bucket", "", 115)], 0),
        (IN_BUCKET, [("bucket", "", 105), ("killed", "a", 140)], 0),
    ],
)
def test_a_blob_is_lost_with_a_replica_that_could_not_store_it_in_the_bucket(
    size: int, faults: list[tuple[str, str, float]], lost: int
) -> None:
    spells = Spells()
    spells.all = [Spell(kind, place, began, began + 5) for kind, place, began in faults]
    assert times_lost(spells, size, 100, 130) == lost
