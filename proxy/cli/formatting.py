"""How numbers, ages, tables and errors are printed."""

import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import datetime
from shutil import get_terminal_size
from typing import Final, NoReturn

import typer

GAP: Final = "  "
UNKNOWN: Final = "-"
ROWS: Final = 500
"""A longer table is printed in pieces of so many rows."""

_UNLIMITED: Final = 1_000_000
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


def fail(text: str) -> NoReturn:
    """Print an error and exit with status 2."""
    print_error(text)
    raise typer.Exit(2)


def print_error(text: str) -> None:
    """Print lines to standard error, each with the name of the command."""
    for line in text.splitlines():
        typer.echo(f"millpond: {printable(line)}", err=True)


def print_line(text: str) -> None:
    """Print a line to standard output, without control characters."""
    typer.echo(printable(text))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the terminal; into a pipe it is as wide as its content."""
    _print_lines(table(heads, rows, screen_width()))


def screen_width() -> int:
    """Return the columns of the terminal; of a pipe, more than any line has."""
    return get_terminal_size().columns if is_terminal() else _UNLIMITED


def is_terminal() -> bool:
    """Return True if standard output is a terminal."""
    return sys.stdout.isatty()


def age(then: float | None) -> str:
    """Return the time since a Unix time in its largest unit: ``3h``; ``-`` for None."""
    if then is None:
        return UNKNOWN
    seconds = max(0, int(time.time() - then))
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def moment(then: float) -> str:
    """Return a Unix time in this host's time zone, as ``2026-11-20 19:04``."""
    return datetime.fromtimestamp(then).astimezone().strftime("%Y-%m-%d %H:%M")


def count(number: int, noun: str) -> str:
    """Return ``1 image`` or ``12,345 images``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """Return the text with a replacement for every character that could control a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], width: int = _UNLIMITED
) -> Iterator[str]:
    """Yield the lines of a table that is at most ``width`` columns wide, if that is possible."""
    return Table(heads, width).lines(rows)


async def print_rows(heads: Sequence[str], rows: AsyncIterator[Sequence[str]]) -> None:
    """Print a table while its rows arrive; nothing without a row."""
    drawing, waiting = Table(heads, screen_width()), list[Sequence[str]]()
    async for row in rows:
        waiting.append(row)
        if len(waiting) == ROWS:
            _print_lines(drawing.lines(waiting))
            waiting = []
    if waiting:
        _print_lines(drawing.lines(waiting))


class Table:
    """Makes the lines of a table of which some rows are known at a time.

    A column is as wide as its widest cell so far. The first cells are names, which are neither cut
    nor wrapped, so that they can be copied. There are three cases: a name that fits is in its row;
    a longer one has the line above its row; and if the other columns leave no room for names, each
    row is a name and an indented list.
    """

    def __init__(self, heads: Sequence[str], width: int) -> None:
        self._heads = heads
        self._width = width
        self._widths = [0] * len(heads)
        self._has_head = False

    def lines(self, rows: Sequence[Sequence[str]]) -> Iterator[str]:
        """Yield the lines of the next rows; those of the first have the heads above them."""
        from rich.cells import cell_len  # noqa: PLC0415 - only for commands that print a table

        cells = [[printable(cell) for cell in row] for row in rows]
        columns = zip(self._widths, self._heads, *cells, strict=True)
        first, *others = [max(known, *map(cell_len, column)) for known, *column in columns]
        room = self._width - sum(len(GAP) + other for other in others)
        if room < len(self._heads[0]):
            for name, *rest in cells:
                yield name
                yield GAP + ", ".join(filter(None, rest))
            return
        if first > room:
            names = (cell_len(name) for name, *_ in cells)
            first = max(len(self._heads[0]), *(one for one in names if one <= room), 0)
        self._widths = [first, *others]
        if not self._has_head:
            self._has_head = True
            yield self._line(self._heads)
        for name, *rest in cells:
            is_long = cell_len(name) > room
            if is_long:
                yield name
            yield self._line(["" if is_long else name, *rest])

    def _line(self, row: Sequence[str]) -> str:
        from rich.cells import set_cell_size  # noqa: PLC0415

        return GAP.join(map(set_cell_size, row, self._widths)).rstrip()


def _print_lines(lines: Iterable[str]) -> None:
    typer.echo("\n".join(lines))
