"""`python -m benchmarks`: run the cases, write the results, compare with an earlier run."""

import argparse
import importlib
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import bench, compare, curves, facts, plots, report
from benchmarks.cases import CASES
from benchmarks.rows import Row
from tests.parts.process import PATH

_HERE = Path(__file__).parent
BASELINE = _HERE / "baseline.json"
PARTIAL = _HERE.parent / "build" / "bench.json"


def main() -> int:
    """Return the exit status: 1 for a loss that was seen twice, or a case that failed."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    if not shutil.which("docker-registry", path=PATH):
        sys.stderr.write("docker-registry, the upstream, is missing: run tests/parts/install\n")
        return 2
    if asked.check and not BASELINE.exists():
        sys.stderr.write("there is no baseline yet: make bench ARGS=--write-baseline\n")
        return 2
    names = asked.only or list(CASES)
    about = facts.gather()
    start = time.monotonic()
    with bench.running(asked.rounds) as running:
        rows, failed = _run(running, names)
        lost = _compare(running, rows, names) if asked.check else {}
        missing = dict(running.missing)
    print(f"\n{report.text(rows)}\n")
    print(f"{(time.monotonic() - start) / 60:.1f} minutes, {asked.rounds} rounds")
    for sentence in [*missing.values(), *failed, *lost.values()]:
        print(f"! {sentence}")
    _write(rows, {**about, "rounds": asked.rounds, "missing": missing}, asked, failed)
    return 1 if lost or failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument(
        "--only", nargs="*", choices=CASES, metavar="CASE", help=f"some of: {' '.join(CASES)}"
    )
    parser.add_argument("--check", action="store_true", help="fail on a loss of 15 %% in a ratio")
    parser.add_argument(
        "--write-baseline", action="store_true", help="what --check compares with from now on"
    )
    return parser.parse_args()


def _run(running: bench.Bench, names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Return the rows of all cases, and a sentence for each case that failed."""
    rows, failed = [], []
    for name in names:
        lacking = [program for program in CASES[name] if not running.has(program)]
        if lacking:
            running.say(f"{name}: left out, {lacking[0]} is not installed")
            continue
        start = time.monotonic()
        try:
            measured = importlib.import_module(f"benchmarks.cases.{name}").run(running)
        except Exception as error:  # one case must not take the others along
            failed.append(f"{name} failed: {type(error).__name__}: {error}")
            running.say(failed[-1])
            continue
        rows += [row.of(name) for row in measured]
        running.say(f"{name}: {time.monotonic() - start:.0f} s")
    return rows, failed


def _compare(running: bench.Bench, rows: list[Row], names: Sequence[str]) -> dict[str, str]:
    """Return the losses that show again when their cases are run a second time."""
    before = [row for row in report.read_json(BASELINE) if row.case in names]
    lost = compare.losses(before, rows)
    again = [name for name in names if any(row.key in lost for row in before if row.case == name)]
    if not again:
        return {}
    running.say(f"worse than the baseline, once more: {' '.join(again)}")
    repeated, _ = _run(running, again)
    suspects = [row for row in before if row.key in lost]
    return compare.losses(suspects, repeated)


def _write(rows: list[Row], about: dict, asked: argparse.Namespace, failed: list[str]) -> None:
    """Write a complete run where the documents show it from, and a part of one aside."""
    if asked.only or failed:
        report.write_json(PARTIAL, rows, about)
        print(f"all numbers: {PARTIAL}")
        return
    if not asked.check:
        report.write_json(_HERE / "results.json", rows, about)
        table = report.markdown(rows, about, asked.rounds)
        (_HERE / "results.md").write_text(table)
        plots.draw(_HERE / "plots", rows)
        curves.draw(_HERE / "plots", rows)
    if asked.write_baseline:
        report.write_json(BASELINE, rows, about)


if __name__ == "__main__":
    sys.exit(main())
