"""What is the gain from workers? `workers: 2` and one process, on the same cores as the load.

The load generator takes part of the cores that it measures, so requests a second alone say too
little. The CPU of the servers is told apart from it: from that follows how many requests a second
the servers' processes could answer if the load came from another machine.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from benchmarks import ours, wrk
from benchmarks.bench import Bench, Server, warm
from benchmarks.processes import cpu_seconds, family, rss_bytes
from benchmarks.pull import Connection, pull_for
from benchmarks.rows import Row, at_least, at_most
from benchmarks.upstream import ACCEPT, BIG
from benchmarks.wrk import Shot

_LAYER = 64_000
_SECONDS = 3
_WORKERS = 2


class _Load(NamedTuple):
    """What came of one turn: work a second, and the servers' CPU seconds for each piece of it."""

    per_second: float
    cpu: float


def run(bench: Bench) -> list[Row]:
    """Return rows for manifests and for large blobs through TLS, and one for memory."""
    folder = bench.certificate
    files = {"cert_file": f"{folder / 'authority.pem'}", "key_file": f"{folder / 'key.pem'}"}
    image = bench.content.image(_LAYER)
    manifest = f"/v2/{image.repository}/manifests/{image.digest}"
    blob = bench.content.path(bench.content.blob(BIG))
    with Connection(bench.url) as connection:
        body = connection.get(manifest, **ACCEPT)
    with ExitStack() as stack:
        plain = _servers(bench, stack, {})
        secure = _servers(bench, stack, {"tls": files})
        for server in plain.values():
            warm(server, manifest, body)
        for server in secure.values():
            warm(server, blob, BIG)
        requests = bench.interleaved(
            {name: partial(_requests, server, manifest) for name, server in plain.items()}
        )
        bytes_ = bench.interleaved(
            {name: partial(_throughput, server, blob) for name, server in secure.items()}
        )
        memory = [rss_bytes(pid) / 1e6 for pid in family(plain["workers"].pid)[1:]]
    return [
        *_rows("manifest by digest", "requests", "requests/s", requests),
        *_rows("300 MB through TLS", "tls", "GB/s", bytes_),
        Row("worker_memory", "resident memory of a worker", "MB", memory),
    ]


def _servers(bench: Bench, stack: ExitStack, extra: Mapping[str, object]) -> dict[str, Server]:
    return {
        name: stack.enter_context(ours.millpond(bench.url, {**extra, "workers": count}))
        for name, count in (("workers", _WORKERS), ("one", 1))
    }


def _rows(work: str, key: str, unit: str, loads: Mapping[str, list[_Load]]) -> list[Row]:
    """Return speed, CPU, and the speed that the CPU of all processes allows, beside one process."""
    mine, other = loads["workers"], loads["one"]
    note = f"{os.cpu_count()} cores, shared with the load"
    work, rival = f"{_WORKERS} workers: {work}", "one process"
    cpu = "µs/request" if unit == "requests/s" else "CPU-s/GB"
    scale = 1e6 if unit == "requests/s" else 1.0
    return [
        Row(
            f"workers_{key}",
            work,
            unit,
            [load.per_second for load in mine],
            rival,
            [load.per_second for load in other],
            note=note,
        ),
        Row(
            f"workers_{key}_cpu",
            f"{work}, CPU of the servers",
            cpu,
            [load.cpu * scale for load in mine],
            rival,
            [load.cpu * scale for load in other],
            at_most(1.15),
        ),
        Row(
            f"workers_{key}_capacity",
            f"{work}, that {_WORKERS} cores without the load allow",
            unit,
            [_WORKERS / load.cpu for load in mine],
            rival,
            [1 / load.cpu for load in other],
            at_least(1.8),
        ),
    ]


def _requests(server: Server, path: str) -> _Load:
    before = cpu_seconds(server.pid)
    load = wrk.fire(Shot(server.url + path, ACCEPT, 32, _SECONDS))
    return _Load(load.per_second, (cpu_seconds(server.pid) - before) / load.requests)


def _throughput(server: Server, path: str) -> _Load:
    before = cpu_seconds(server.pid)
    pulls = pull_for(_SECONDS, [server.url + path] * 4)
    size = sum(size for size, _ in pulls) / 1e9
    return _Load(
        sum(size / seconds for size, seconds in pulls) / 1e9,
        (cpu_seconds(server.pid) - before) / size,
    )
