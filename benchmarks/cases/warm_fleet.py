"""What does a hit cost in a fleet, with Redis and a bucket?"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from benchmarks import ours, wrk
from benchmarks.bench import Bench, Server, warm
from benchmarks.processes import cpu_seconds
from benchmarks.pull import Connection
from benchmarks.rows import Row, at_most
from benchmarks.upstream import ACCEPT
from benchmarks.wrk import Shot
from tests.parts import redis, seaweed
from tests.parts.process import workdir

_LAYER = 64_000


def run(bench: Bench) -> list[Row]:
    """Return the CPU of a manifest and of a small blob, beside a Millpond that is alone."""
    image = bench.content.image(_LAYER)
    blob = bench.content.blob(1_000)
    paths = {
        "manifest by tag": f"/v2/{image.repository}/manifests/{image.tag}",
        "blob of 1 kB": bench.content.path(blob),
    }
    with ExitStack() as stack:
        alone = stack.enter_context(ours.millpond(bench.url))
        shared = stack.enter_context(ours.millpond(bench.url, stack.enter_context(_fleet())))
        turns = {}
        for work, path in paths.items():
            for name, server in (("alone", alone), ("fleet", shared)):
                warm(server, path, _body(bench, path))
                turns[f"{name} {work}"] = partial(_turn, server, path)
        results = bench.interleaved(turns)
    return [
        Row(
            f"fleet_{number}",
            f"{work} in a fleet, CPU",
            "µs",
            results[f"fleet {work}"],
            "alone",
            results[f"alone {work}"],
            at_most(1.1),
        )
        for number, work in enumerate(paths, 1)
    ]


@contextmanager
def _fleet() -> Iterator[dict[str, Any]]:
    """Give the settings of a replica, with a Redis and a bucket that run."""
    with workdir("fleet") as root, redis.running() as shared, seaweed.running(root) as server:
        secret = root / "secret"
        secret.write_text("a secret that replicas of the benchmark share")
        yield {
            "fleet": {"redis": shared.url, "secret_file": str(secret)},
            "storage": {"bucket": server.bucket().settings()},
        }


def _body(bench: Bench, path: str) -> bytes:
    """Return what upstream sends."""
    with Connection(bench.url) as connection:
        return connection.get(path, **ACCEPT)


def _turn(server: Server, path: str) -> float:
    """Return microseconds of CPU a request."""
    before = cpu_seconds(server.pid)
    load = wrk.fire(Shot(server.url + path, ACCEPT))
    return (cpu_seconds(server.pid) - before) / load.requests * 1e6
