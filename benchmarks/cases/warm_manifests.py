"""How fast are manifests that are held: by tag, by digest, and by HEAD?"""

from functools import partial

from benchmarks import heads, wrk
from benchmarks.bench import Bench, Server, warm
from benchmarks.processes import cpu_seconds
from benchmarks.pull import Connection
from benchmarks.rows import Row, at_least, at_most
from benchmarks.upstream import ACCEPT
from benchmarks.wrk import Shot

_LAYER = 64_000
_UNIT = "requests/s"
_TARGETS = {"tag": at_least(50), "digest": at_least(25), "HEAD": at_least(25)}


def run(bench: Bench) -> list[Row]:
    """Return a row for each way of asking, and one for the CPU of a request."""
    image = bench.content.image(_LAYER)
    base = f"/v2/{image.repository}/manifests/"
    ways = {"tag": image.tag, "digest": image.digest, "HEAD": image.digest}
    with bench.contestants("registry", "nginx") as servers:
        for server in servers.values():
            warm(server, base + image.tag, _body(bench, base + image.digest))
            warm(server, base + image.digest, _body(bench, base + image.digest))
        turns = {
            (way, name): partial(_turn, server, base + ref, way)
            for way, ref in ways.items()
            for name, server in servers.items()
            if name != "nginx" or way == "digest"
        }
        results = bench.interleaved(turns)
    rows = [
        Row(
            f"manifest_by_{way}",
            "HEAD of a manifest" if way == "HEAD" else f"manifest by {way}",
            _UNIT,
            [speed for speed, _ in results[way, "ours"]],
            "docker-registry proxy",
            [speed for speed, _ in results[way, "registry"]],
            _TARGETS[way],
        )
        for way in ways
        if (way, "registry") in results
    ]
    if "nginx" in servers:
        mine, theirs = results["digest", "ours"], results["digest", "nginx"]
        work = "manifest by digest, CPU per request"
        rows.append(
            Row(
                "manifest_cpu",
                work,
                "µs",
                [cpu for _, cpu in mine],
                "nginx",
                [cpu for _, cpu in theirs],
                at_most(2.5),
            )
        )
        speeds = [speed for speed, _ in mine], [speed for speed, _ in theirs]
        rows.append(
            Row("manifest_nginx", "manifest by digest", _UNIT, speeds[0], "nginx", speeds[1])
        )
    return rows


def _body(bench: Bench, path: str) -> bytes:
    with Connection(bench.url) as connection:
        return connection.get(path, **ACCEPT)


def _turn(server: Server, path: str, way: str) -> tuple[float, float]:
    """Return requests a second, and microseconds of CPU a request."""
    shot = Shot(server.url + path, ACCEPT)
    before = cpu_seconds(server.pid)
    if way == "HEAD":
        return heads.per_second(shot), 0.0
    load = wrk.fire(shot)
    return load.per_second, (cpu_seconds(server.pid) - before) / load.requests * 1e6
