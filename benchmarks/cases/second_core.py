"""What is the gain from a second core? Two processes on two directories, compared with one.

The load generators share the cores with the servers, so a machine of two cores shows less than
what is there.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from benchmarks import ours, wrk
from benchmarks.bench import Bench, Server, warm
from benchmarks.pull import Connection, pull_for
from benchmarks.rows import Row
from benchmarks.upstream import ACCEPT, BIG
from benchmarks.wrk import Shot

_LAYER = 64_000
_SECONDS = 2
_CONNECTIONS = 32


def run(bench: Bench) -> list[Row]:
    """Return manifests a second, and GB a second through TLS, of two beside one."""
    folder = bench.certificate
    files = {"cert_file": f"{folder / 'authority.pem'}", "key_file": f"{folder / 'key.pem'}"}
    image = bench.content.image(_LAYER)
    manifest = f"/v2/{image.repository}/manifests/{image.digest}"
    blob = bench.content.path(bench.content.blob(BIG))
    with Connection(bench.url) as connection:
        body = connection.get(manifest, **ACCEPT)
    requests = _both(bench, {}, manifest, body, _requests)
    throughput = _both(bench, {"tls": files}, blob, BIG, _throughput)
    note = f"{os.cpu_count()} cores, shared with the load"
    work = "two processes beside one"
    return [
        Row(
            "two_requests",
            f"{work}: manifest by digest",
            "requests/s",
            requests["two"],
            "one process",
            requests["one"],
            note=note,
        ),
        Row(
            "two_tls",
            f"{work}: 300 MB through TLS",
            "GB/s",
            throughput["two"],
            "one process",
            throughput["one"],
            note=note,
        ),
    ]


def _both(
    bench: Bench,
    extra: dict[str, object],
    path: str,
    expected: bytes | int,
    measure: Callable[[list[Server], str], float],
) -> dict[str, list[float]]:
    """Return what `measure` says of one server and of two, round by round."""
    with ExitStack() as stack:
        servers = [stack.enter_context(ours.millpond(bench.url, extra)) for _ in range(2)]
        for server in servers:
            warm(server, path, expected)
        turns = {
            "one": partial(measure, servers[:1], path),
            "two": partial(measure, servers, path),
        }
        return bench.interleaved(turns)


def _requests(servers: list[Server], path: str) -> float:
    connections = _CONNECTIONS // len(servers)
    shots = [Shot(one.url + path, ACCEPT, connections, _SECONDS) for one in servers]
    return sum(load.per_second for load in wrk.fire_all(shots))


def _throughput(servers: list[Server], path: str) -> float:
    # Two clients in both cases, so that a client is not what limits one server.
    urls = [servers[number % len(servers)].url + path for number in range(2)]
    return sum(size / seconds for size, seconds in pull_for(_SECONDS, urls)) / 1e9
