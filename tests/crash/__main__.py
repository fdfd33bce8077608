"""`python -m tests.crash --kills N --seed S`: as long as you like; ends with 1 at a broken promise."""

import argparse
import asyncio
import random
import sys
from pathlib import Path

from tests.crash.harness import Broken, Plan, run
from tests.parts.millpond import REPOSITORY_ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--cuts-power", action="store_true", help="needs root")
    parser.add_argument("--tree", type=Path, default=REPOSITORY_ROOT)
    plan = Plan(**vars(parser.parse_args()))
    sys.stdout.write(f"seed {plan.seed}\n")
    try:
        report = asyncio.run(run(plan))
    except Broken as broken:
        sys.stdout.write(f"{broken}\n")
        return 1
    sys.stdout.write(f"{report}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
