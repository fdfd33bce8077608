"""How fast are small cached blobs?"""

from functools import partial

from benchmarks import wrk
from benchmarks.bench import Bench, Server, warm
from benchmarks.rows import Row, at_least
from benchmarks.wrk import Shot

_SIZES = {"1 kB": 1_000, "100 kB": 100_000}
_NAMES = {"registry": "docker-registry proxy", "nginx": "nginx"}


def run(bench: Bench) -> list[Row]:
    """Return a row for each size and rival; that with nginx only informs."""
    paths = {name: bench.content.path(bench.content.blob(size)) for name, size in _SIZES.items()}
    with bench.contestants(*_NAMES) as servers:
        for server in servers.values():
            for name, path in paths.items():
                warm(server, path, _SIZES[name])
        results = bench.interleaved(
            {
                (size, name): partial(_turn, server, path)
                for size, path in paths.items()
                for name, server in servers.items()
            }
        )
    return [
        Row(
            f"blob_{_SIZES[size]}_{rival}",
            f"blob of {size}",
            "requests/s",
            results[size, "ours"],
            _NAMES[rival],
            results[size, rival],
            at_least(20) if rival == "registry" else None,
        )
        for size in paths
        for rival in _NAMES
        if rival in servers
    ]


def _turn(server: Server, path: str) -> float:
    return wrk.fire(Shot(server.url + path, {})).per_second
