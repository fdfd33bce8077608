"""Does a miss fill a link, and how much later does its first byte come?

The first byte is measured over the same link with a relay of 40 ms before it, because a round trip
of the bare link (some 0.1 ms) is less than what any program takes to be scheduled twice.
"""

from benchmarks import link, ours, relay
from benchmarks.bench import Bench
from benchmarks.pull import Pull, pull
from benchmarks.rows import Row, at_least, at_most
from benchmarks.upstream import BIG, Settings

_MEGABITS = 500
_ROUND_TRIP = 0.04


def run(bench: Bench) -> list[Row]:
    """Return the speed beside direct, and by how many round trips the first byte is later."""
    if reason := link.why_not():
        bench.missing["link"] = reason
        return []
    path = bench.content.path(bench.content.blob(BIG))
    small = bench.content.path(bench.content.blob(100_000))
    with link.running(_MEGABITS) as far:
        settings = Settings(f"{far.address}:5000", far.prefix)
        with bench.second_registry(settings).running() as registry:
            pull(registry.url, path)
            body = _both(bench, registry.url, path)
            with relay.running(registry.netloc, _ROUND_TRIP) as netloc:
                first = _both(bench, f"http://{netloc}", small)
    later = [
        (mine.first_byte - direct.first_byte) / _ROUND_TRIP
        for mine, direct in zip(first["ours"], first["direct"], strict=True)
    ]
    work, speeds = f"300 MB on a link of {_MEGABITS} Mbit/s", {}
    for name, pulls in body.items():
        speeds[name] = [one.speed for one in pulls]
    return [
        Row(
            "cold_shaped",
            work,
            "MB/s",
            speeds["ours"],
            "direct",
            speeds["direct"],
            at_least(0.98),
        ),
        Row(
            "cold_first_byte",
            "its first byte, later than direct by (40 ms away)",
            "round trips",
            later,
            target=at_most(1),
        ),
        Row(
            "cold_first_byte_bare",
            "its first byte on the bare link",
            "ms",
            [one.first_byte * 1e3 for one in body["ours"]],
            "direct",
            [one.first_byte * 1e3 for one in body["direct"]],
        ),
    ]


def _both(bench: Bench, upstream: str, path: str) -> dict[str, list[Pull]]:
    def cold() -> Pull:
        with ours.millpond(upstream) as server:
            return pull(server.url, path)

    return bench.interleaved({"ours": cold, "direct": lambda: pull(upstream, path)})
