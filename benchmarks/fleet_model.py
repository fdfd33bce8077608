"""`python -m benchmarks.fleet_model`: how long a rollout takes, and what it costs, by size.

It writes the table of docs/scaling.md, which `make docs` inserts there, and draws its plots.
`--measure` measures the costs that `fleet_site` states, on this machine. `--check` compares the
model with three real replicas.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import curves
from benchmarks.fleet_outcome import Outcome
from benchmarks.fleet_scenarios import (
    Direct,
    Fleet,
    NodeFleet,
    RegistryTwo,
    WarmFleet,
)
from benchmarks.fleet_site import GB, MONTHLY_ROLLOUTS, OTHER_ZONE, Prices, Site

HERE: Final = Path(__file__).parent
PLOTS: Final = HERE / "plots"
TABLE: Final = HERE / "fleet.md"
SIZES: Final = (10, 100, 1_000, 10_000)
_SERVERS: Final = ("Millpond", "Millpond, pulled before", "registry:2")
"""Systems that need machines for replicas."""


def outcomes(site: Site | None = None) -> list[Outcome]:
    """Return a rollout for each system and number of nodes."""
    site = site or Site()
    found = []
    for nodes in SIZES:
        found.append(Direct(site, nodes, 0).play())
        found.append(RegistryTwo(site, nodes, 1).play())
        found += [Fleet(site, nodes, replicas).play() for replicas in (1, 3, 10, 30)]
        found.append(WarmFleet(site, nodes, 30).play())
        found.append(NodeFleet(site, nodes, nodes).play())
    return found


def name(outcome: Outcome) -> str:
    """Return the system as the tables name it."""
    if outcome.system not in _SERVERS[:2]:
        return outcome.system
    product, _, how = outcome.system.partition(", ")
    many = outcome.replicas
    return f"{product}, {many} replica{'s' * (many > 1)}{', ' * bool(how)}{how}"


def monthly(outcome: Outcome, prices: Prices | None = None) -> dict[str, float]:
    """Return dollars a month: network address translation, zones, bucket, machines."""
    prices = prices or Prices()
    upstream, to_nodes = outcome.upstream_bytes / GB, outcome.node_bytes / GB
    stored = outcome.upstream_bytes / GB if outcome.puts else 0.0
    servers = outcome.replicas if outcome.system in _SERVERS else 0
    machines = prices.replica_hour * servers * prices.hours
    has_redis = bool(outcome.redis) and outcome.replicas > 1
    requests = outcome.puts * prices.put + (outcome.gets + outcome.heads) * prices.get
    return {
        "NAT": upstream * prices.nat_gb * MONTHLY_ROLLOUTS,
        "zones": 0.0
        if outcome.system == "no cache"
        else to_nodes * OTHER_ZONE * prices.zone_gb * MONTHLY_ROLLOUTS,
        "bucket": MONTHLY_ROLLOUTS * (requests + stored * prices.stored_gb_month),
        "machines": machines + (prices.redis_hour * prices.hours if has_redis else 0.0),
    }


def table(found: Sequence[Outcome]) -> str:
    """Return a row for each rollout, as Markdown."""
    lines = [
        "| nodes | system | last node (s) | bodies from the registry, per layer "
        "| GB from the registry | bucket requests | Redis commands, busiest second "
        "| of a core of Redis | $ a month | full for longest |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for outcome in found:
        cost = sum(monthly(outcome).values())
        narrowest = re.sub(r"replica \d+", "a replica", outcome.narrowest)
        lines.append(
            f"| {outcome.nodes:,} | {name(outcome)} | {outcome.seconds:,.0f} "
            f"| {outcome.bodies_per_digest:,.0f} | {outcome.upstream_bytes / GB:,.0f} "
            f"| {outcome.bucket_requests:,} | {outcome.redis_peak:,.0f} | {outcome.redis_load:.0%} "
            f"| {cost:,.0f} | {narrowest} |"
        )
    return "\n".join(lines)


def draw(found: Sequence[Outcome], folder: Path) -> None:
    """Write the plots: time to the last node, bytes from the registry, and dollars, by nodes."""
    values = {
        "seconds": ("Seconds until the last of the nodes has the image", lambda o: o.seconds),
        "upstream": ("GB from the registry", lambda o: o.upstream_bytes / GB),
        "dollars": ("Dollars a month", lambda o: sum(monthly(o).values())),
    }
    for key, (title, value) in values.items():
        points: dict[str, curves.Points] = {}
        for outcome in found:
            points.setdefault(name(outcome), []).append((outcome.nodes, value(outcome)))
        labels = {each: each for each in points}
        (folder / f"fleet-{key}.svg").write_text(curves.svg(points, title, labels))


def main(words: Sequence[str] | None = None) -> int:
    """Run the model; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_model", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the costs here")
    parser.add_argument("--check", action="store_true", help="compare with three real replicas")
    asked = parser.parse_args(words)
    if asked.measure:
        from benchmarks import fleet_measure  # noqa: PLC0415 - needs the parts of the tests

        return fleet_measure.main()
    if asked.check:
        from benchmarks import fleet_check  # noqa: PLC0415 - needs root

        return fleet_check.main()
    found = outcomes()
    draw(found, PLOTS)
    TABLE.write_text(table(found) + "\n")
    print(TABLE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
