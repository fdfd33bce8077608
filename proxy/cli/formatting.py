"""How numbers, ages, tables and complaints read."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import typer

GAP: Final = "  "
UNKNOWN: Final = "-"
PROGRESS_SECONDS: Final = 60.0
"""A log or a script gets the progress of long work this often."""

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))

__all__ = [
    "UNKNOWN",
    "EventLines",
    "age",
    "complain",
    "count",
    "is_terminal",
    "moment",
    "printable",
    "refuse",
    "show_size",
    "table",
    "terminal_width",
]


def refuse(text: str) -> NoReturn:
    """Say what is wrong, and exit with status 2."""
    complain(text)
    raise typer.Exit(2)


def complain(text: str) -> None:
    """Write lines to standard error, as this command's."""
    for line in text.splitlines():
        typer.echo(f"millpond: {printable(line)}", err=True)


def is_terminal() -> bool:
    """Whether a person reads what goes to standard output."""
    return sys.stdout.isatty()


def terminal_width() -> int | None:
    """Return the columns of the terminal, None if standard output is none."""
    return shutil.get_terminal_size().columns if is_terminal() else None


def show_size(size: int) -> str:
    """Return bytes as people read them: ``10.0GiB``."""
    from proxy.core import units  # noqa: PLC0415

    return units.show_size(size)


class EventLines:
    """Prints a server's events as they are, but of those that tell progress only one a minute."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()

    def show(self, line: bytes, event: Mapping[str, Any]) -> None:
        """Print the line of an event, unless it tells progress and the last one is recent."""
        now = time.monotonic()
        if event.get("event") == "progress":
            if now - self._printed_at < PROGRESS_SECONDS:
                return
            self._printed_at = now
        typer.echo(line)


def age(then: float | None) -> str:
    """Return how long ago that Unix time is, as ``3h``; ``-`` when it is not known."""
    if then is None:
        return UNKNOWN
    seconds = max(0, int(time.time() - then))
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def moment(then: float) -> str:
    """Return a Unix time on this host's clock, as ``2026-11-20 19:04``."""
    return datetime.fromtimestamp(then).astimezone().strftime("%Y-%m-%d %H:%M")


def count(number: int, noun: str) -> str:
    """Return ``1 image`` or ``12,345 images``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """Return the text without what could steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None
) -> Iterator[str]:
    """Yield the lines of a table, ``width`` columns wide if that can be.

    A first cell that leaves no room for the others has a line to itself; where nothing fits beside
    each other, so has every one, and there are no heads. None: wide as it gets.
    """
    lines = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    others = sum(widths[1:]) + len(GAP) * len(widths[1:])
    if width is not None and len(heads[0]) + others > width:
        for first, *rest in rows:
            yield first
            yield GAP + ", ".join(filter(None, rest))
        return
    if width is not None:
        widths[0] = min(widths[0], width - others)
    for first, *rest in lines:
        cells = [first, *rest]
        if len(first) > widths[0]:
            yield first
            cells[0] = ""
        padded = (cell.ljust(size) for cell, size in zip(cells, widths, strict=True))
        yield GAP.join(padded).rstrip()
