"""What does a large cached blob cost, in CPU time of the server and in time?"""

from functools import partial

from benchmarks.bench import Bench, Server, warm
from benchmarks.processes import cpu_seconds
from benchmarks.pull import pull_for
from benchmarks.rows import Row, at_least, at_most
from benchmarks.upstream import BIG

_SECONDS = 2


def run(bench: Bench) -> list[Row]:
    """Return CPU per GB beside both rivals, and the throughput beside nginx."""
    path = bench.content.path(bench.content.blob(BIG))
    with bench.contestants("registry", "nginx") as servers:
        for server in servers.values():
            warm(server, path, BIG)
        turns = {name: partial(_turn, server, path) for name, server in servers.items()}
        results = bench.interleaved(turns)
    cpu = {name: [used for used, _ in measured] for name, measured in results.items()}
    speed = {name: [fast for _, fast in measured] for name, measured in results.items()}
    work, rival = "blob of 300 MB, CPU per GB", "docker-registry proxy"
    rows = []
    if "registry" in servers:
        target = at_most(0.45)
        rows.append(Row("big_cpu", work, "ms", cpu["ours"], rival, cpu["registry"], target))
    if "nginx" in servers:
        target = at_most(1.8)
        rows.append(Row("big_cpu_nginx", work, "ms", cpu["ours"], "nginx", cpu["nginx"], target))
        ours, theirs = speed["ours"], speed["nginx"]
        work = "blob of 300 MB, throughput"
        rows.append(Row("big_speed", work, "MB/s", ours, "nginx", theirs, at_least(0.95)))
    return rows


def _turn(server: Server, path: str) -> tuple[float, float]:
    """Return milliseconds of CPU per GB, and MB a second."""
    before = cpu_seconds(server.pid)
    [(size, seconds)] = pull_for(_SECONDS, [server.url + path])
    used = cpu_seconds(server.pid) - before
    return used / size * 1e12, size / seconds / 1e6
