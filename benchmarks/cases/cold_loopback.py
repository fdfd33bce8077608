"""What does a miss cost without network delay?

Every turn begins with an empty cache. nginx stores what comes and proves nothing.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.processes import cpu_seconds
from benchmarks.pull import pull
from benchmarks.rows import Row, at_least, at_most

_SIZE = 210_000_000
_SETTLED = 0.5
"""Seconds after a start, and after a pull: background work counts too."""

_BLOCK = bytes(1 << 20)


class _Miss(NamedTuple):
    """The speed in MB/s, and the server's CPU-seconds per GB."""

    speed: float
    cpu: float


def run(bench: Bench) -> list[Row]:
    """Return the speed of one client that pulls 210 MB, and the CPU time of the server."""
    path = bench.content.path(bench.content.blob(_SIZE))
    pull(bench.url, path)  # from here on upstream reads from RAM
    names = bench.installed("ours", "registry", "nginx")
    turns = {name: partial(_miss, bench, name, path) for name in names}
    turns["direct"] = lambda: _Miss(pull(bench.url, path).speed, 0.0)
    results = bench.interleaved(turns)
    speeds = {name: [miss.speed for miss in misses] for name, misses in results.items()}
    costs = {name: [miss.cpu for miss in misses] for name, misses in results.items()}
    work = "210 MB, one client, loopback"
    mine, direct = speeds["ours"], speeds["direct"]
    rows = [Row("cold_loopback", work, "MB/s", mine, "direct", direct, at_least(0.8))]
    rows += [
        Row(f"cold_{rival}", work, "MB/s", mine, rival, speeds[rival], target)
        for rival, target in (("registry", at_least(1)), ("nginx", None))
        if rival in results
    ]
    rows.append(Row("cold_cpu", f"{work}: CPU", "s/GB", costs["ours"], target=at_most(1.5)))
    rows += [
        Row(f"cold_cpu_{rival}", f"{work}: CPU", "s/GB", costs["ours"], rival, costs[rival])
        for rival in ("registry", "nginx")
        if rival in results
    ]
    return rows


def _miss(bench: Bench, name: str, path: str) -> _Miss:
    with bench.contestant(name) as server:
        time.sleep(_SETTLED)
        _claim_memory(bench.root)
        before = cpu_seconds(server.pid)
        pulled = pull(server.url, path)
        time.sleep(_SETTLED)
        return _Miss(pulled.speed, (cpu_seconds(server.pid) - before) / pulled.size * 1e9)


def _claim_memory(folder: Path) -> None:
    """Make the host of a virtual machine back the memory that the next turn takes.

    Free memory may have been returned to the host. To get it back costs 2 to 3 CPU-seconds a GB,
    which are counted for whoever touches it first.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(2 * _SIZE // len(_BLOCK)):
            file.write(_BLOCK)
