"""`python -m benchmarks.soak MINUTES`: mixed load on a small cache, watching for what grows.

Fails on a wrong byte, an unexpected answer, an error that Millpond counted and nobody provoked, a
cache above its limit, or growth of memory, descriptors or tasks. Writes `benchmarks/soak.json`.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from benchmarks import bench, facts, ours
from benchmarks.ours import Watched
from benchmarks.processes import descriptors, rss_bytes
from benchmarks.soak_clients import Shelf, Tally, client, make_shelf

OUT = Path(__file__).with_name("soak.json")
_CLIENTS = 16
_EVERY = 3.0
# Room for 32 of the biggest blobs at once: what finds no room is passed through, ranges as a whole.
_LIMIT = 200_000_000
_SETTINGS = {"storage": {"max_size": _LIMIT}, "freshness": {"tag_ttl": "2s", "negative_ttl": "1s"}}


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much the last fifth may be above the second one, in the metric's unit and as a share."""

    amount: float
    share: float


TOLERANCE = {
    # The allocator keeps what a burst needed: that is reached early, and not exceeded for long.
    "rss_mb": Allowance(16, 0.10),
    # As many as there are clients come and go with what these happen to do.
    "descriptors": Allowance(_CLIENTS, 0.10),
    "tasks": Allowance(_CLIENTS, 0.10),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """The process at one moment; `second` counts from the start."""

    second: float
    rss_mb: float
    descriptors: int
    tasks: int
    cache_mb: float
    evictions: int


def main(minutes: float) -> int:
    """Return the exit status."""
    about = facts.gather()
    with bench.running(1) as running:
        shelf = make_shelf(running.content)
        with ours.watched(running.url, _SETTINGS, every=1.0) as server:
            tally = Tally()
            readings = _load(server, shelf, tally, minutes * 60)
            with urlopen(f"{server.url}/-/stats", timeout=10) as answer:
                stats = json.load(answer)
    faults = [*tally.faults, *_counted(stats, tally), *growth(readings)]
    if any(one.cache_mb * 1e6 > _LIMIT for one in readings):
        faults.append("the cache exceeded its limit")
    if not stats["cache"]["evictions"]:
        faults.append("nothing was evicted: the load was too small to prove anything")
    _report(readings, tally, faults)
    document = {
        **about,
        "minutes": minutes,
        "faults": faults,
        "done": dict(tally.done),
        "stats": stats,
        "readings": [asdict(one) for one in readings],
    }
    OUT.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if faults else 0


def growth(readings: Sequence[Reading]) -> list[str]:
    """Return a sentence for whatever was more in the last fifth than in the second, by median."""
    fifth = len(readings) // 5
    if not fifth:
        return ["too short: fewer than five readings"]
    early, late = readings[fifth : 2 * fifth], readings[-fifth:]
    found = []
    for name, allowed in TOLERANCE.items():
        before = median(getattr(one, name) for one in early)
        after = median(getattr(one, name) for one in late)
        if after > before + max(allowed.amount, allowed.share * before):
            found.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return found


def _load(server: Watched, shelf: Shelf, tally: Tally, seconds: float) -> list[Reading]:
    done = threading.Event()
    clients = [
        threading.Thread(target=client, args=(number, server.url, shelf, tally, done))
        for number in range(_CLIENTS)
    ]
    start = time.monotonic()
    readings = []
    try:
        for one in clients:
            one.start()
        while time.monotonic() < start + seconds and any(one.is_alive() for one in clients):
            time.sleep(_EVERY)
            readings.append(_reading(server, start))
    finally:
        done.set()
        for one in clients:
            one.join()
    return readings


def _reading(server: Watched, start: float) -> Reading:
    now = time.monotonic()
    tasks = [sample.tasks for sample in server.samples(now - _EVERY - 2, now)]
    cache = server.stats()["cache"]
    return Reading(
        second=round(now - start, 1),
        rss_mb=rss_bytes(server.pid) / 1e6,
        descriptors=descriptors(server.pid),
        tasks=round(median(tasks)) if tasks else 0,
        cache_mb=cache["bytes"] / 1e6,
        evictions=cache["evictions"],
    )


def _counted(stats: dict, tally: Tally) -> list[str]:
    """Return what Millpond counted as errors beyond those that the load provoked."""
    found = []
    errors = dict(stats["total"]["errors"])
    absent = sum(errors.pop(code, 0) for code in ("MANIFEST_UNKNOWN", "BLOB_UNKNOWN"))
    if absent != tally.done["absent"]:
        found.append(f"{tally.done['absent']} absences were asked for, {absent} were counted")
    if errors:
        found.append(f"errors that nobody provoked: {errors}")
    cache = stats["cache"]
    troubles = ("content_mismatches", "storage_errors")
    return [*found, *(f"{name}: {cache[name]}" for name in troubles if cache[name])]


def _report(readings: Sequence[Reading], tally: Tally, faults: Sequence[str]) -> None:
    done = ", ".join(f"{count:,} {name}" for name, count in sorted(tally.done.items()))
    print(f"done: {done}")
    for name in (*TOLERANCE, "cache_mb", "evictions"):
        numbers = [getattr(one, name) for one in readings]
        if numbers:
            shown = f"first {numbers[0]:,.0f}, median {median(numbers):,.0f}"
            print(f"{name}: {shown}, highest {max(numbers):,.0f}, last {numbers[-1]:,.0f}")
    for fault in faults:
        print(f"! {fault}")
    print("failed" if faults else "nothing grew, nothing was wrong")


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30))
