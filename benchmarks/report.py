"""Writes what was measured: on the terminal, as Markdown, as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rows import Row

_HEADS = ("work", "unit", "Millpond", "beside", "its", "ratio", "target", "reached")
_REACHED = {True: "yes", False: "**no**", None: ""}


def number(value: float) -> str:
    """Return a number as people like to read it: three digits, no exponents."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def cells(row: Row) -> tuple[str, ...]:
    """Return the row's line of the table."""
    return (
        row.work,
        row.unit,
        number(median(row.ours)),
        row.rival,
        number(median(row.theirs)) if row.theirs else "",
        f"{number(row.value)} ×" if row.is_ratio else "",
        str(row.target or ""),
        _REACHED[row.is_reached],
    )


def text(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    lines = [_HEADS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADS))]
    right = {2, 4, 5}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        .replace("**", "")
        .rstrip()
        for line in lines
    )


def markdown(rows: Sequence[Row], about: dict[str, dict[str, str]], rounds: int) -> str:
    """Return the table of `results.md`, with where it was measured and what rows say besides."""
    machine, versions = about["machine"], about["versions"]
    lines = [
        f"Medians of {rounds} interleaved rounds, {machine['date'][:10]}, on {machine['cores']} "
        f"cores of an {machine['cpu']}, Linux {machine['kernel']}, Python {versions['python']}. "
        "Each ratio is the median of the rounds' ratios, Millpond's number to the other's.",
        "",
        f"| {' | '.join(_HEADS)} |",
        "|---|---|---:|---|---:|---:|---|---|",
        *(f"| {' | '.join(cells(row))} |" for row in rows),
    ]
    notes = [f"- {row.work}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def write_json(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write everything, all raw numbers included."""
    document = {**about, "rows": [row.json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> list[Row]:
    """Return the rows that `write_json` wrote."""
    return [Row.parse(row) for row in json.loads(path.read_text())["rows"]]
