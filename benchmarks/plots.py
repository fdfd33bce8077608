"""Draws each group of rows as SVG: how far every target is reached, on a logarithmic scale.

Written by hand: a plot of bars needs no library. Colours follow the reader's light or dark theme.
"""

from collections.abc import Sequence
from html import escape
from math import log
from pathlib import Path

from benchmarks.report import number
from benchmarks.rows import Row

GROUPS = {
    "warm": "Warm cache",
    "cold": "Cold cache",
    "load": "Under load",
}
_WIDTH, _BAR, _STEP, _TOP = 860, 14, 44, 58
_LEFT, _RIGHT = 24, 220
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 }
  .quiet { fill: #59636e; font-size: 12px }
  .reached { fill: #1a7f5a }
  .missed { fill: #c4432b }
  .track { fill: #d1d9e0; opacity: .45 }
  .goal { stroke: #1f2328; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .quiet { fill: #9198a1 }
    .reached { fill: #3fb68b }
    .missed { fill: #f0765f }
    .track { fill: #3d444d }
    .goal { stroke: #f0f6fc }
  }
"""


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write a plot for each group that has rows with targets; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for prefix, title in GROUPS.items():
        chosen = [row for row in rows if row.case.startswith(prefix) and row.target]
        if chosen:
            drawn.append(folder / f"{prefix}.svg")
            drawn[-1].write_text(svg(title, chosen))
    return drawn


def svg(title: str, rows: Sequence[Row]) -> str:
    """Return a plot with a bar a row; the line that all share is the target."""
    shares = [row.progress or 0.0 for row in rows]
    low = min(0.25, *shares)
    high = max(4.0, *shares)
    low, high = max(low, 0.02) / 1.15, min(high, 50.0) * 1.15
    room = _WIDTH - _LEFT - _RIGHT

    def place(share: float) -> float:
        inside = min(max(share, low), high)
        return _LEFT + room * log(inside / low) / log(high / low)

    height = _TOP + _STEP * len(rows) + 12
    goal = place(1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>',
        f'<text class="quiet" x="{goal:.1f}" y="44">target · further right is better</text>',
    ]
    for line, (row, share) in enumerate(zip(rows, shares, strict=True)):
        top = _TOP + line * _STEP
        parts += _bar(row, place(share), top, room)
        ends = f'y1="{top + 15}" y2="{top + 21 + _BAR}"'
        parts.append(f'<line class="goal" x1="{goal:.1f}" x2="{goal:.1f}" {ends}/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: Row, end: float, top: int, room: int) -> list[str]:
    value = f"{number(row.value)} ×" if row.is_ratio else f"{number(row.value)} {row.unit}".strip()
    beside = f" · {row.rival}" if row.is_ratio else ""
    y = top + 18
    return [
        f'<text x="{_LEFT}" y="{top + 12}">{escape(row.work)}'
        f'<tspan class="quiet">{escape(beside)}</tspan></text>',
        f'<rect class="track" x="{_LEFT}" y="{y}" width="{room}" height="{_BAR}" rx="2"/>',
        f'<rect class="{"reached" if row.is_reached else "missed"}" x="{_LEFT}" y="{y}" '
        f'width="{max(end - _LEFT, 2):.1f}" height="{_BAR}" rx="2"/>',
        f'<text x="{_LEFT + room + 12}" y="{y + 12}">{escape(value)}'
        f'<tspan class="quiet"> target {escape(str(row.target))}</tspan></text>',
    ]
