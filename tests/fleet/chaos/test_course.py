"""A short course with a fixed seed; `python -m tests.fleet.chaos --minutes 5` runs for longer."""

import json
import subprocess
import sys

import pytest

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
