"""Load on hits of one server or of several, which have the same cores as the load.

So requests per second are not sufficient: the CPU time of the servers is counted without the load.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from benchmarks import wrk
from benchmarks.bench import Bench, Server
from benchmarks.processes import cpu_seconds
from benchmarks.pull import Connection, pull_for
from benchmarks.upstream import ACCEPT, BIG
from benchmarks.wrk import Shot

NOTE: Final = f"{os.cpu_count()} cores, shared with the load"
_LAYER: Final = 64_000
_SECONDS: Final = 3
_CONNECTIONS: Final = 32
_PULLS: Final = 4
"""Concurrent clients of a blob: more than limit one server, and as many for two."""


class Load(NamedTuple):
    """Work a second of one turn, and the servers' CPU seconds for each piece of it."""

    per_second: float
    cpu: float


class Hits(NamedTuple):
    """Paths that are held after one request, with what it returns, and settings for TLS."""

    manifest: str
    body: bytes
    blob: str
    size: int
    tls: Mapping[str, object]


def hits(bench: Bench) -> Hits:
    """Return content of the upstream: a manifest and a large blob."""
    image = bench.content.image(_LAYER)
    manifest = f"/v2/{image.repository}/manifests/{image.digest}"
    with Connection(bench.url) as connection:
        body = connection.get(manifest, **ACCEPT)
    folder = bench.certificate
    files = {"cert_file": f"{folder / 'authority.pem'}", "key_file": f"{folder / 'key.pem'}"}
    blob = bench.content.path(bench.content.blob(BIG))
    return Hits(manifest, body, blob, BIG, {"tls": files})


def requests(servers: Sequence[Server], path: str) -> Load:
    """Return manifests a second of all servers together, and CPU seconds of a request."""
    before = _cpu(servers)
    connections = _CONNECTIONS // len(servers)
    shots = [Shot(one.url + path, ACCEPT, connections, _SECONDS) for one in servers]
    loads = wrk.fire_all(shots)
    spent = _cpu(servers) - before
    return Load(
        sum(load.per_second for load in loads), spent / sum(load.requests for load in loads)
    )


def throughput(servers: Sequence[Server], path: str) -> Load:
    """Return GB a second of all servers together, and CPU seconds of a GB."""
    before = _cpu(servers)
    urls = [servers[number % len(servers)].url + path for number in range(_PULLS)]
    pulls = pull_for(_SECONDS, urls)
    spent = _cpu(servers) - before
    per_second = sum(size / seconds for size, seconds in pulls) / 1e9
    return Load(per_second, spent / (sum(size for size, _ in pulls) / 1e9))


def _cpu(servers: Sequence[Server]) -> float:
    return sum(cpu_seconds(server.pid) for server in servers)
