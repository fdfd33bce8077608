"""Is a miss faster than upstream itself, where upstream is far and the layers are small?

Asked by two clients. skopeo fetches blob after blob, each on a new connection; its upstream speaks
TLS, as real ones do: it tries that first, and would lose time without it. The other one is ours:
three kept connections, as many as Docker has, and no TLS, so that the direct way is at its best.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

from benchmarks import ours, relay
from benchmarks.bench import Bench
from benchmarks.cases.warm_image import timed
from benchmarks.pull import Connection
from benchmarks.rows import Row, at_most
from benchmarks.upstream import ACCEPT, Settings
from tests.parts import skopeo
from tests.parts.images import Image

_LAYER = 64_000
_ROUND_TRIP = 0.04
_CONNECTIONS = 3


def run(bench: Bench) -> list[Row]:
    """Return the seconds for an image of 20 layers of 64 kB, 40 ms away, with either client."""
    image = bench.content.image(_LAYER)
    work = "image of 20 layers of 64 kB, 40 ms away"
    rows = [_row("cold_small_layers", f"{work}, 3 connections", _with_ours(bench, image))]
    if bench.has("skopeo"):
        seconds = _with_skopeo(bench, image)
        rows.append(_row("cold_small_skopeo", f"{work}, skopeo copy", seconds))
    return rows


def _row(key: str, work: str, seconds: dict[str, list[float]]) -> Row:
    return Row(key, work, "s", seconds["ours"], "direct", seconds["direct"], at_most(1))


def _with_ours(bench: Bench, image: Image) -> dict[str, list[float]]:
    with relay.running(urlsplit(bench.url).netloc, _ROUND_TRIP) as netloc:
        upstream = f"http://{netloc}"

        def cold() -> float:
            with ours.millpond(upstream) as server:
                return _pull_image(server.url, image)

        return bench.interleaved({"ours": cold, "direct": lambda: _pull_image(upstream, image)})


def _pull_image(url: str, image: Image) -> float:
    """Return the seconds for manifest, config and layers on three kept connections."""
    start = time.perf_counter()
    with ExitStack() as stack, ThreadPoolExecutor(_CONNECTIONS) as clients:
        first = stack.enter_context(Connection(url))
        first.get(f"/v2/{image.repository}/manifests/{image.tag}", **ACCEPT)
        left = [f"/v2/{image.repository}/blobs/{blob.digest}" for blob in reversed(image.blobs)]

        def drain(number: int) -> None:
            connection = stack.enter_context(Connection(url)) if number else first
            while left:
                connection.drain(left.pop())

        list(clients.map(drain, range(_CONNECTIONS)))
    return time.perf_counter() - start


def _with_skopeo(bench: Bench, image: Image) -> dict[str, list[float]]:
    folder = bench.certificate
    files = {"certificate": f"{folder / 'authority.pem'}", "key": f"{folder / 'key.pem'}"}
    settings = Settings(http=(("tls", files),))
    with ExitStack() as stack:
        registry = stack.enter_context(bench.second_registry(settings).running())
        netloc = stack.enter_context(relay.running(registry.netloc, _ROUND_TRIP))
        trusted = {"url": f"https://{netloc}", "tls": {"ca_file": f"{folder / 'authority.pem'}"}}
        direct = stack.enter_context(skopeo.running(netloc))

        def cold() -> float:
            extra = {"upstreams": {"docker.io": trusted}}
            with (
                ours.millpond(trusted["url"], extra) as server,
                skopeo.running(server.address) as client,
            ):
                return timed(client, image.by_tag, image.digest)

        turns = {"ours": cold, "direct": lambda: timed(direct, image.by_tag, image.digest)}
        return bench.interleaved(turns)
