"""Draws cost against the number of blobs as SVG, both on logarithmic scales."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from pathlib import Path

from benchmarks.plots import STYLE
from benchmarks.report import number
from benchmarks.rows import Row

Points = list[tuple[float, float]]

CURVES = {
    "first_tag": "start to first manifest, s",
    "agreed": "start to agreement, s",
    "end_peak_mb": "most memory, MB",
    "tag_hot_us": "manifest, hot set, µs CPU",
    "blob_hot_us": "blob, hot set, µs CPU",
    "tag_any_us": "manifest, any, µs CPU",
    "blob_any_us": "blob, any, µs CPU",
    "evict_s": "eviction of 10,000 blobs, s",
}
_COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#57606a", "#bc4c00", "#0e8a9a")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 480, 56, 250, 48, 44


def draw(folder: Path, rows: Sequence[Row]) -> None:
    """Write the plot, if there are rows for it."""
    if curves := points(rows):
        (folder / "scale.svg").write_text(svg(curves, "Cost against the number of blobs", CURVES))


def points(rows: Sequence[Row]) -> dict[str, Points]:
    """Return what the rows `NAME@BLOBS` say: for each name its values by number of blobs."""
    found: dict[str, Points] = {}
    for row in rows:
        name, at, blobs = row.key.partition("@")
        if at and name in CURVES and row.ours[0] > 0:
            found.setdefault(name, []).append((float(blobs), row.ours[0]))
    return {name: sorted(found[name]) for name in CURVES if name in found}


def svg(curves: Mapping[str, Points], title: str, names: Mapping[str, str]) -> str:
    """Return a plot of all curves, each with its last value and what it is called."""
    spots = [spot for each in curves.values() for spot in each]
    across = _Axis([x for x, _ in spots], _LEFT, _WIDTH - _RIGHT)
    up = _Axis([y for _, y in spots], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>',
    ]
    for power in range(across.first, across.last + 1):
        x = across.place(10**power)
        parts.append(
            f'<text class="quiet" x="{x:.0f}" y="{_HEIGHT - 18}" '
            f'text-anchor="middle">{10**power:,}</text>'
        )
    for power in range(up.first, up.last + 1):
        y = up.place(10**power)
        parts.append(
            f'<rect class="track" x="{_LEFT}" y="{y:.1f}" height="1" '
            f'width="{_WIDTH - _LEFT - _RIGHT}"/><text class="quiet" x="{_LEFT - 8}" '
            f'y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>'
        )
    ends = {name: up.place(each[-1][1]) for name, each in curves.items()}
    labels = _apart(ends)
    for (name, each), colour in zip(curves.items(), _COLOURS, strict=False):
        line = " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in each)
        said = f"{number(each[-1][1])}  {names[name]}"
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{labels[name] + 4:.1f}" '
            f'style="fill:{colour}">{escape(said)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """Powers of ten from one place to another."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.first = floor(log10(min(values)))
        self.last = max(ceil(log10(max(values))), self.first + 1)
        self._begin, self._end = begin, end

    def place(self, value: float) -> float:
        share = (log10(value) - self.first) / (self.last - self.first)
        return self._begin + share * (self._end - self._begin)


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Return heights near the given ones at which labels do not cover each other."""
    placed: dict[str, float] = {}
    below = float("-inf")
    for name, height in sorted(ends.items(), key=lambda end: end[1]):
        below = placed[name] = max(height, below + 17)
    return placed
