"""What is the gain from workers? `workers: 2` and one process, on the same cores as the load.

From the CPU of the servers follows how many requests a second their processes could answer if the
load came from another machine.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from benchmarks import cores, ours
from benchmarks.bench import Bench, Server, warm
from benchmarks.cores import Load
from benchmarks.processes import family, rss_bytes
from benchmarks.rows import Row, at_least, at_most

_WORKERS = 2


def run(bench: Bench) -> list[Row]:
    """Return rows for manifests and for large blobs through TLS, and one for memory."""
    hits = cores.hits(bench)
    with ExitStack() as stack:
        plain = _servers(bench, stack, {})
        secure = _servers(bench, stack, hits.tls)
        for server in plain.values():
            warm(server, hits.manifest, hits.body)
        for server in secure.values():
            warm(server, hits.blob, hits.size)
        requests = bench.interleaved(
            {name: partial(cores.requests, [one], hits.manifest) for name, one in plain.items()}
        )
        bytes_ = bench.interleaved(
            {name: partial(cores.throughput, [one], hits.blob) for name, one in secure.items()}
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


def _rows(work: str, key: str, unit: str, loads: Mapping[str, list[Load]]) -> list[Row]:
    """Return speed, CPU, and the speed that the CPU of all processes allows, beside one process."""
    mine, other = loads["workers"], loads["one"]
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
            note=cores.NOTE,
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
