"""Is a miss faster than one connection, where upstream limits each (as CDNs and long routes do)?"""

from urllib.parse import urlsplit

from benchmarks import ours, relay
from benchmarks.bench import Bench
from benchmarks.pull import pull
from benchmarks.rows import Row, at_least
from benchmarks.upstream import BIG

_RATE = 10_000_000


def run(bench: Bench) -> list[Row]:
    """Return the speed of one client that pulls 300 MB at 10 MB/s a connection."""
    path = bench.content.path(bench.content.blob(BIG))
    with relay.running(urlsplit(bench.url).netloc, rate=_RATE) as netloc:
        upstream = f"http://{netloc}"

        def cold() -> float:
            with ours.millpond(upstream) as server:
                return pull(server.url, path).speed

        results = bench.interleaved({"ours": cold, "direct": lambda: pull(upstream, path).speed})
    mine, direct = results["ours"], results["direct"]
    work = "300 MB, upstream gives a connection 10 MB/s"
    return [Row("cold_slow", work, "MB/s", mine, "direct", direct, at_least(3))]
