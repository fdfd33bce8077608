"""`python -m tests.attack [NAME…]`: attack the real program and print what became of it.

Ends with 1 if a limit was exceeded or a scenario found a fault. `raw` is the longest answer time of
`/-/healthz` with what the machine is to blame for; `stall` without it.
"""

import argparse
import asyncio
import sys

import uvloop

from tests.attack.arena import Row, run
from tests.attack.every import ALL

_HEAD = f"{'scenario':<20} {'memory':>9} {'stall':>8} {'raw':>8} {'took':>7}  outcome\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("names", nargs="*", help="scenarios; all if none is named")
    names = parser.parse_args().names
    unknown = set(names) - ALL.keys()
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    sys.stdout.write(_HEAD)
    failed = 0
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for name in names or ALL:
            row = runner.run(run(ALL[name]))
            failed += bool(row.faults)
            sys.stdout.write(_line(row))
            sys.stdout.flush()
    sys.stdout.write(f"{len(names or ALL) - failed} of {len(names or ALL)} hold\n")
    return min(failed, 1)


def _line(row: Row) -> str:
    statuses = " ".join(f"{n}x{status or 'broken'}" for status, n in sorted(row.statuses.items()))
    outcome = "; ".join(dict.fromkeys(row.faults)) or "ok"
    figures = f"{row.growth / 1e6:6.1f} MB {row.stall * 1e3:5.0f} ms {row.raw_stall * 1e3:5.0f} ms"
    return f"{row.name:<20} {figures} {row.seconds:5.1f} s  {outcome} [{statuses}]\n"


if __name__ == "__main__":
    sys.exit(main())
