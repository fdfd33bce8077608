"""How fast are cached manifests: by tag, by digest, and by HEAD?"""

from functools import partial

from benchmarks import heads, wrk
from benchmarks.bench import Bench, Server, warm
from benchmarks.processes import cpu_seconds
from benchmarks.pull import Connection
from benchmarks.rows import Row, at_least, at_most
from benchmarks.upstream import ACCEPT
from benchmarks.wrk import Shot

Turns = dict[tuple[str, str], list[tuple[float, float]]]

_LAYER = 64_000
_UNIT = "requests/s"
_TARGETS = {"tag": at_least(50), "digest": at_least(25), "HEAD": at_least(25)}


def run(bench: Bench) -> list[Row]:
    """Return a row for each way of asking, and one for the CPU of a request."""
    image = bench.content.image(_LAYER)
    base = f"/v2/{image.repository}/manifests/"
    ways = {"tag": base + image.tag, "digest": base + image.digest, "HEAD": base + image.digest}
    with Connection(bench.url) as connection:
        body = connection.get(ways["digest"], **ACCEPT)
    with bench.contestants("registry", "nginx") as servers:
        for server in servers.values():
            warm(server, ways["tag"], body)
            warm(server, ways["digest"], body)
        turns = {
            (way, name): partial(_turn, server, path, way)
            for way, path in ways.items()
            for name, server in servers.items()
            if name != "nginx" or way == "digest"
        }
        results = bench.interleaved(turns)
    return [*_beside_registry(results), *_beside_nginx(results)]


def _turn(server: Server, path: str, way: str) -> tuple[float, float]:
    """Return requests a second, and microseconds of CPU a request."""
    shot = Shot(server.url + path, ACCEPT)
    if way == "HEAD":
        return heads.per_second(shot), 0.0
    before = cpu_seconds(server.pid)
    load = wrk.fire(shot)
    return load.per_second, (cpu_seconds(server.pid) - before) / load.requests * 1e6


def _beside_registry(results: Turns) -> list[Row]:
    rows = []
    for way, target in _TARGETS.items():
        work = "HEAD of a manifest" if way == "HEAD" else f"manifest by {way}"
        ours = [speed for speed, _ in results[way, "ours"]]
        theirs = [speed for speed, _ in results[way, "registry"]]
        rival = "docker-registry proxy"
        rows.append(Row(f"manifest_by_{way}", work, _UNIT, ours, rival, theirs, target))
    return rows


def _beside_nginx(results: Turns) -> list[Row]:
    if ("digest", "nginx") not in results:
        return []
    speed, cpu = zip(*results["digest", "ours"], strict=True)
    its_speed, its_cpu = zip(*results["digest", "nginx"], strict=True)
    work, target = "manifest by digest", at_most(2.5)
    costs = f"{work}, CPU per request"
    return [
        Row("manifest_cpu", costs, "µs", list(cpu), "nginx", list(its_cpu), target),
        Row("manifest_nginx", work, _UNIT, list(speed), "nginx", list(its_speed)),
    ]
