"""What does a miss cost where the network costs nothing?"""

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.pull import pull
from benchmarks.rows import Row, at_least
from benchmarks.upstream import BIG


def run(bench: Bench) -> list[Row]:
    """Return the speed of one client that pulls 300 MB into an empty cache."""
    path = bench.content.path(bench.content.blob(BIG))
    pull(bench.url, path)  # from here on upstream reads from RAM

    def cold() -> float:
        with ours.millpond(bench.url) as server:
            return pull(server.url, path).speed

    results = bench.interleaved({"ours": cold, "direct": lambda: pull(bench.url, path).speed})
    mine, direct = results["ours"], results["direct"]
    work = "300 MB, one client, loopback"
    return [Row("cold_loopback", work, "MB/s", mine, "direct", direct, at_least(0.8))]
