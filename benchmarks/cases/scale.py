"""How much more does a cache of a million blobs and 100,000 tags cost than a small one?

The caches are made once and kept in `build/scale`; a million takes minutes, and 1 GB of disk.
"""

from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.rows import Row, Target, at_most
from benchmarks.scaled import Numbers, measure

SIZES = (1_000, 10_000, 100_000, 1_000_000)
_FOLDER = Path(__file__).resolve().parents[2] / "build" / "scale"


class _Asked(NamedTuple):
    name: str
    work: str
    unit: str
    target: Target | None = None
    """For the largest."""


ASKED = (
    _Asked("first_tag", "start to first manifest", "s", at_most(2)),
    _Asked("first_blob", "start to first blob", "s", at_most(2)),
    _Asked("agreed", "start to agreement of index and disk", "s", at_most(120)),
    _Asked("quiet", "start to the end of all that it begins", "s", at_most(120)),
    _Asked("start_stall_ms", "longest loop stall meanwhile", "ms", at_most(50)),
    _Asked("rss_mb", "memory after start", "MB", at_most(600)),
    _Asked("end_peak_mb", "most memory until the end", "MB", at_most(600)),
    _Asked("ls_s", "list of all images", "s"),
    _Asked("ls_stall_ms", "longest loop stall meanwhile", "ms", at_most(50)),
    _Asked("evict_s", "eviction of 10,000 blobs", "s"),
    _Asked("evict_stall_ms", "longest loop stall meanwhile", "ms", at_most(50)),
    _Asked("evict_wait_ms", "longest wait for a manifest meanwhile", "ms"),
)
HITS = {
    "tag_hot_us": "manifest by tag, 100 again and again",
    "blob_hot_us": "blob from the disk, 100 again and again",
    "tag_any_us": "manifest by tag, any of all",
    "blob_any_us": "blob from the disk, any of all",
}


def run(bench: Bench) -> list[Row]:
    """Return what each size costs; a hit beside what it costs in the smallest cache."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    found = {size: measure(_FOLDER / str(size), size, bench.say) for size in SIZES}
    return [row for size, numbers in found.items() for row in _rows(size, numbers, found[SIZES[0]])]


def _rows(size: int, numbers: Numbers, smallest: Numbers) -> list[Row]:
    at = f"{size:,} blobs"
    is_largest = size == SIZES[-1]
    rows = []
    for name, work, unit, target in ASKED:
        goal = target if is_largest else None
        rows.append(Row(f"{name}@{size}", f"{at}: {work}", unit, [numbers[name]], target=goal))
    for name, work in HITS.items():
        theirs = [] if size == SIZES[0] else [smallest[name]]
        goal = at_most(1.2) if is_largest and "hot" in name else None
        beside = f"{SIZES[0]:,} blobs" if theirs else ""
        rows.append(
            Row(f"{name}@{size}", f"{at}: {work}", "µs", [numbers[name]], beside, theirs, goal)
        )
    return rows
