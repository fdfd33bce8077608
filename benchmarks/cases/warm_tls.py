"""How much does TLS reduce the throughput?"""

from contextlib import ExitStack
from functools import partial
from statistics import median

from benchmarks import ours, rivals
from benchmarks.bench import Bench, Server, warm
from benchmarks.processes import cpu_seconds
from benchmarks.pull import pull_for
from benchmarks.rows import Row, at_least
from benchmarks.upstream import BIG

_SECONDS = 2


def run(bench: Bench) -> list[Row]:
    """Return the throughput of a blob of 300 MB on one TLS connection."""
    path = bench.content.path(bench.content.blob(BIG))
    folder = bench.certificate
    files = {"cert_file": f"{folder / 'authority.pem'}", "key_file": f"{folder / 'key.pem'}"}
    with ExitStack() as stack:
        servers: dict[str, Server] = {
            "ours": stack.enter_context(ours.millpond(bench.url, {"tls": files})),
            "nginx": stack.enter_context(rivals.nginx(bench.url, folder)),
        }
        for server in servers.values():
            warm(server, path, BIG)
        turns = {name: partial(_turn, server, path) for name, server in servers.items()}
        results = bench.interleaved(turns)
    speed = {name: [fast for fast, _ in measured] for name, measured in results.items()}
    busy = {name: median(share for _, share in measured) for name, measured in results.items()}
    note = f"of a core busy: ours {busy['ours']:.0%}, nginx {busy['nginx']:.0%}"
    work, target = "blob of 300 MB through TLS, throughput", at_least(0.6)
    return [
        Row("tls_speed", work, "MB/s", speed["ours"], "nginx", speed["nginx"], target, note=note)
    ]


def _turn(server: Server, path: str) -> tuple[float, float]:
    """Return MB a second, and the share of a core that the server used."""
    before = cpu_seconds(server.pid)
    [(size, seconds)] = pull_for(_SECONDS, [server.url + path])
    return size / seconds / 1e6, (cpu_seconds(server.pid) - before) / seconds
