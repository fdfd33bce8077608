"""Do many clients that pull the same content at once cause more requests to upstream than one?"""

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import link, ours
from benchmarks.bench import Bench
from benchmarks.pull import pull
from benchmarks.rows import Row, at_most
from benchmarks.upstream import Registry, Settings

_MEGABITS = 200
_SIZE = 100_000_000
_CLIENTS = 16


def run(bench: Bench) -> list[Row]:
    """Return how long 16 clients take beside one direct pull, and how many bodies came."""
    if reason := link.why_not():
        bench.missing["link"] = reason
        return []
    path = bench.content.path(bench.content.blob(_SIZE))
    with link.running(_MEGABITS) as far:
        settings = Settings(f"{far.address}:5000", far.prefix)
        with bench.second_registry(settings).running() as registry:
            turns = {
                "ours": lambda: _crowd(registry, path),
                "direct": lambda: (pull(registry.url, path).seconds, 1.0),
            }
            results = bench.interleaved(turns)
    seconds = {name: [taken for taken, _ in measured] for name, measured in results.items()}
    bodies = [bodies for _, bodies in results["ours"]]
    work = f"{_CLIENTS} clients at once, 100 MB, link of {_MEGABITS} Mbit/s"
    rival = "one direct pull"
    return [
        Row("crowd", work, "s", seconds["ours"], rival, seconds["direct"], at_most(1.1)),
        Row("crowd_bodies", f"{work}: upstream bodies", "bodies", bodies, target=at_most(1)),
    ]


def _crowd(registry: Registry, path: str) -> tuple[float, float]:
    """Return the seconds until all have all, and how often upstream sent the body."""
    before = registry.sent(path)
    with ours.millpond(registry.url) as server, ThreadPoolExecutor(_CLIENTS) as clients:
        start = time.perf_counter()
        pulls = list(clients.map(lambda _: pull(server.url, path), range(_CLIENTS)))
        seconds = time.perf_counter() - start
        assert all(one.size == _SIZE for one in pulls)
    return seconds, (registry.sent(path) - before) / _SIZE
