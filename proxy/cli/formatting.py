"""How numbers, ages, tables and errors are printed."""

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from io import StringIO
from shutil import get_terminal_size
from typing import Final, NoReturn

import typer

GAP: Final = "  "
UNKNOWN: Final = "-"
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
    for line in table(heads, rows, screen_width()):
        typer.echo(line)


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
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], width: int = _UNLIMITED
) -> Iterator[str]:
    """Yield the lines of a table that is at most ``width`` columns wide, if that is possible.

    The first cells are names, which are neither cut nor wrapped, so that they can be copied. There
    are three cases: a name that fits is in its row; a longer one has the line above its row; and
    if the other columns leave no room for names, each row is a name and an indented list.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    room = width - sum(len(GAP) + other for other in widths[1:])
    if room < len(heads[0]):
        for name, *rest in cells:
            yield name
            yield GAP + ", ".join(filter(None, rest))
        return
    fitting = [["" if len(name) > room else name, *rest] for name, *rest in cells]
    head, *lines = _drawn(heads, fitting)
    yield head
    for (name, *_), line in zip(cells, lines, strict=True):
        if len(name) > room:
            yield name
        yield line


def _drawn(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table that is as wide as its content."""
    from rich.console import Console  # noqa: PLC0415 - only for commands that print a table
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    columns = (Column(head, no_wrap=True) for head in heads)
    drawing = Table(*columns, box=None, pad_edge=False, padding=(0, len(GAP), 0, 0))
    for row in rows:
        drawing.add_row(*map(Text, row))
    console = Console(file=StringIO(), width=_UNLIMITED, color_system=None)
    with console.capture() as capture:
        console.print(drawing)
    return [line.rstrip() for line in capture.get().splitlines()]
