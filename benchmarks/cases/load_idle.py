"""What do idle connections cost?"""

from contextlib import ExitStack

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.processes import rss_bytes
from benchmarks.pull import Connection, pull
from benchmarks.rows import Row, at_least, at_most
from benchmarks.upstream import ACCEPT

_CONNECTIONS = 2000
_LAYER = 64_000
_ROUNDS = 2
_BUFFER = 16 * 1024


def run(bench: Bench) -> list[Row]:
    """Return the MB that 2,000 idle connections add, and the share of them that are served on."""
    image = bench.content.image(_LAYER)
    manifest = f"/v2/{image.repository}/manifests/{image.digest}"

    def turn() -> tuple[float, float]:
        with ours.millpond(bench.url) as server, ExitStack() as stack:
            for _ in range(20):
                pull(server.url, manifest)
            before = rss_bytes(server.pid)
            idle = []
            for _ in range(_CONNECTIONS):
                connection = stack.enter_context(Connection(server.url, buffer=_BUFFER))
                connection.get("/v2/")
                idle.append(connection)
            more = rss_bytes(server.pid) - before
            served = sum(bool(connection.get(manifest, **ACCEPT)) for connection in idle)
            return more / 1e6, served / _CONNECTIONS

    measured = bench.interleaved({"idle": turn}, _ROUNDS)["idle"]
    memory, served = map(list, zip(*measured, strict=True))
    work = "2,000 idle connections"
    return [
        Row("idle_memory", f"{work}: more memory", "MB", memory, target=at_most(60)),
        Row("idle_served", f"{work}: share served on", "", served, target=at_least(1)),
    ]
