"""What is the gain from a second core? Two processes on two directories, compared with one."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks import cores, ours
from benchmarks.bench import Bench, Server, warm
from benchmarks.cores import Load
from benchmarks.rows import Row


def run(bench: Bench) -> list[Row]:
    """Return manifests a second, and GB a second through TLS, of two beside one."""
    hits = cores.hits(bench)
    with ExitStack() as stack:
        servers = _servers(bench, stack, {})
        for server in servers:
            warm(server, hits.manifest, hits.body)
        requests = _both(bench, servers, partial(cores.requests, path=hits.manifest))
    with ExitStack() as stack:
        servers = _servers(bench, stack, hits.tls)
        for server in servers:
            warm(server, hits.blob, hits.size)
        throughput = _both(bench, servers, partial(cores.throughput, path=hits.blob))
    return [
        _row("two_requests", "manifest by digest", "requests/s", requests),
        _row("two_tls", "300 MB through TLS", "GB/s", throughput),
    ]


def _servers(bench: Bench, stack: ExitStack, extra: Mapping[str, object]) -> list[Server]:
    return [stack.enter_context(ours.millpond(bench.url, extra)) for _ in range(2)]


def _both(
    bench: Bench, servers: Sequence[Server], measure: Callable[[Sequence[Server]], Load]
) -> dict[str, list[Load]]:
    """Return the measurements of one server and of two, round by round."""
    return bench.interleaved(
        {"one": partial(measure, servers[:1]), "two": partial(measure, servers)}
    )


def _row(key: str, work: str, unit: str, loads: Mapping[str, Sequence[Load]]) -> Row:
    return Row(
        key,
        f"two processes beside one: {work}",
        unit,
        [load.per_second for load in loads["two"]],
        "one process",
        [load.per_second for load in loads["one"]],
        note=cores.NOTE,
    )
