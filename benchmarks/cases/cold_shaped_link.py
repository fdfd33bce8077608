"""Does a miss saturate a link, and how much later does its first byte arrive?

The first byte is measured over the same link with a relay of 40 ms before it, because a round trip
of the bare link (some 0.1 ms) is less than what any program takes to be scheduled twice.
"""

from benchmarks import link, ours, relay
from benchmarks.bench import Bench
from benchmarks.pull import Pull, pull
from benchmarks.rows import Row, at_least, at_most
from benchmarks.upstream import BIG, Settings

Pulls = dict[str, list[Pull]]

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
    return [_speed(body), _later(first), _bare(body)]


def _speed(body: Pulls) -> Row:
    ours, direct = ([one.speed for one in body[name]] for name in ("ours", "direct"))
    work = f"300 MB on a link of {_MEGABITS} Mbit/s"
    return Row("cold_shaped", work, "MB/s", ours, "direct", direct, at_least(0.98))


def _later(first: Pulls) -> Row:
    pairs = zip(first["ours"], first["direct"], strict=True)
    trips = [(mine.first_byte - direct.first_byte) / _ROUND_TRIP for mine, direct in pairs]
    work = "first byte on that link and 40 ms away, later than direct by"
    return Row("cold_first_byte", work, "round trips", trips, target=at_most(1))


def _bare(body: Pulls) -> Row:
    ours, direct = ([one.first_byte * 1e3 for one in body[name]] for name in ("ours", "direct"))
    return Row("cold_first_byte_bare", "first byte on that link", "ms", ours, "direct", direct)


def _both(bench: Bench, upstream: str, path: str) -> Pulls:
    def cold() -> Pull:
        with ours.millpond(upstream) as server:
            return pull(server.url, path)

    return bench.interleaved({"ours": cold, "direct": lambda: pull(upstream, path)})
