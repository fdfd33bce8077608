"""Is a miss faster than upstream itself, where upstream is far and the layers are small?

Upstream speaks TLS, as real ones do: skopeo tries that first, and would lose time without it.
"""

from contextlib import ExitStack
from urllib.parse import urlsplit

from benchmarks import ours, relay
from benchmarks.bench import Bench
from benchmarks.cases.warm_image import timed
from benchmarks.rows import Row, at_most
from benchmarks.upstream import Settings
from tests.parts import skopeo

_LAYER = 64_000
_ROUND_TRIP = 0.04


def run(bench: Bench) -> list[Row]:
    """Return the seconds of `skopeo copy` of 20 layers of 64 kB, 40 ms away."""
    if not bench.has("skopeo"):
        return []
    image = bench.content.image(_LAYER)
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
            with ours.millpond(trusted["url"], extra) as server:
                with skopeo.running(urlsplit(server.url).netloc) as client:
                    return timed(client, image.by_tag, image.digest)

        turns = {"ours": cold, "direct": lambda: timed(direct, image.by_tag, image.digest)}
        results = bench.interleaved(turns)
    mine, theirs = results["ours"], results["direct"]
    work = "image of 20 layers of 64 kB, 40 ms away, skopeo copy"
    return [Row("cold_small_layers", work, "s", mine, "direct", theirs, at_most(1))]
