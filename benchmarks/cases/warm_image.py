"""How long does a real client take for a complete cached image?"""

import time
from contextlib import ExitStack
from urllib.parse import urlsplit

from benchmarks.bench import Bench
from benchmarks.rows import Row, at_most
from tests.parts import skopeo
from tests.parts.skopeo import Skopeo

_LAYER = 5_000_000


def run(bench: Bench) -> list[Row]:
    """Return the seconds of `skopeo copy` of 20 layers of 5 MB."""
    image = bench.content.image(_LAYER)
    with bench.contestants("registry") as servers, ExitStack() as stack:
        clients = {
            name: stack.enter_context(skopeo.running(urlsplit(server.url).netloc))
            for name, server in servers.items()
        }
        for client in clients.values():
            timed(client, image.by_tag, image.digest)
        turns = {
            name: lambda client=client: timed(client, image.by_tag, image.digest)
            for name, client in clients.items()
        }
        time.sleep(1)  # docker-registry stores behind the client's back
        results = bench.interleaved(turns)
    if "registry" not in results:
        return []
    ours, theirs = results["ours"], results["registry"]
    work = "whole image, 20 layers of 5 MB, skopeo copy"
    return [Row("image", work, "s", ours, "docker-registry proxy", theirs, at_most(1))]


def timed(client: Skopeo, reference: str, digest: str) -> float:
    """Return the seconds of one pull into an empty place."""
    client.forget()
    start = time.perf_counter()
    pulled = client.pull(reference)
    seconds = time.perf_counter() - start
    assert pulled == digest, f"{client.name} got {pulled}, not {digest}"
    return seconds
