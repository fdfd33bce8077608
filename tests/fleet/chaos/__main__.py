"""`python -m tests.fleet.chaos --minutes 5 --seed N`: prints a report; ends with 1 at a broken promise.

It needs root: its machines are network namespaces, and it moves into one of its own first.
"""

import argparse
import asyncio
import json
import os
import random
import sys
from pathlib import Path

from tests.fleet.chaos.course import Plan, run
from tests.parts.process import command

APART = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--only", nargs="*", default=(), help="names of faults")
    parser.add_argument("--keep", type=Path, help="copy the logs of the replicas here")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.inside:
        words = [sys.executable, "-m", "tests.fleet.chaos", *sys.argv[1:], "--inside"]
        seed = [] if "--seed" in sys.argv else ["--seed", str(given.seed)]
        unshare = command("unshare")
        os.execv(unshare, [unshare, *APART, *words, *seed])
    plan = Plan(given.seed, given.minutes * 60, given.clients, given.only)
    report = asyncio.run(run(plan, given.keep))
    sys.stdout.write(json.dumps(report.as_json(), indent=2) + "\n")
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
