"""Shows the events of long work: as JSON, as lines, or with a progress bar on a terminal."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import typer

from proxy.cli.formatting import is_terminal, print_error, print_line, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from proxy.cli.client import Client, Document

INTERVAL: Final = 60.0
"""Seconds between two lines of JSON that report progress."""


class Display:
    """Prints results and errors, and no progress."""

    def advance(self, completed: int, total: int | None) -> None:
        """Show how many bytes are completed; ``total`` None leaves the last total."""

    def print_line(self, text: str) -> None:
        """Print a result."""
        print_line(text)

    def print_error(self, text: str) -> None:
        """Print an error."""
        print_error(text)


async def follow(
    client: "Client",
    path: str,
    query: Mapping[str, str],
    show: Callable[[Display, "Document"], None],
    *,
    as_json: bool,
) -> "Document":
    """Start long work, show its events, and return the last one.

    Raises ``ErrorAnswer``, ``NoAnswer``.
    """
    if as_json:
        return await client.follow("POST", path, query, EventLines().show)
    if not is_terminal():
        return await client.follow("POST", path, query, lambda _, event: show(Display(), event))
    with _Bar(path.rpartition("/")[2]) as bar:
        return await client.follow("POST", path, query, lambda _, event: show(bar, event))


class EventLines:
    """Prints events as the server sends them, but progress only once a minute."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()

    def show(self, line: bytes, event: Mapping[str, Any]) -> None:
        """Print the line of an event, unless it is progress and the last one is recent."""
        now = time.monotonic()
        if event.get("event") == "progress":
            if now - self._printed_at < INTERVAL:
                return
            self._printed_at = now
        typer.echo(line)


class _Bar(Display):
    """A progress bar, above which lines are printed. It disappears at the end."""

    def __init__(self, label: str) -> None:
        self._progress = _progress(label)
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, completed: int, total: int | None) -> None:
        self._progress.update(self._task, completed=completed, total=total)

    def print_line(self, text: str) -> None:
        self._progress.console.print(printable(text), soft_wrap=True, markup=False)

    print_error = print_line


class Bars:
    """Shows no progress of several pulls."""

    def show(self, name: str, line: bytes, event: Mapping[str, Any]) -> None:
        """Show an event of one pull."""

    def remove(self, name: str) -> None:
        """Stop showing a pull that has ended."""


class _JsonLines(Bars):
    """Prints the events of several pulls, each with its image."""

    def __init__(self) -> None:
        self._printed: dict[str, EventLines] = defaultdict(EventLines)

    def show(self, name: str, line: bytes, event: Mapping[str, Any]) -> None:
        line = json.dumps({**event, "image": name}).encode()
        self._printed[name].show(line, event)


class _TerminalBars(Bars):
    """A progress bar for each pull. They disappear as they end."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, name: str, line: bytes, event: Mapping[str, Any]) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(printable(name), total=None)
        if event["event"] == "progress":
            self._progress.update(
                self._tasks[name], completed=event["bytes"], total=event["total"] or None
            )

    def remove(self, name: str) -> None:
        if (task := self._tasks.pop(name, None)) is not None:
            self._progress.remove_task(task)


class Bytes:
    """Shows no progress of one transfer."""

    def advance(self, count: int) -> None:
        """Show that so many more bytes are done."""


class _BytesBar(Bytes):
    def __init__(self, progress: "Progress", task: "TaskID") -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)


@contextmanager
def byte_bar(label: str, total: int, *, as_json: bool) -> Iterator[Bytes]:
    """Show a transfer of ``total`` bytes: as a bar on a terminal, else not at all."""
    if as_json or not is_terminal():
        yield Bytes()
        return
    with _progress(label) as progress:
        yield _BytesBar(progress, progress.add_task(label, total=total))


@contextmanager
def bars(*, as_json: bool) -> Iterator[Bars]:
    """Show several pulls at once: as JSON lines, as bars on a terminal, else not at all."""
    if as_json:
        yield _JsonLines()
    elif not is_terminal():
        yield Bars()
    else:
        with _progress("{task.description}") as progress:
            yield _TerminalBars(progress)


def _progress(label: str) -> "Progress":
    """Return a bar with the columns that fit the width of the terminal."""
    from rich import progress  # noqa: PLC0415 - for terminals only
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False, emoji=False)
    columns: list[progress.ProgressColumn] = [progress.TaskProgressColumn()]
    if console.width >= 48:
        columns.append(progress.TimeRemainingColumn())
    if console.width >= 80:
        sizes = progress.DownloadColumn(binary_units=True)
        columns = [sizes, progress.TransferSpeedColumn(), *columns]
    bar = progress.BarColumn(bar_width=max(8, min(40, console.width - 60)))
    return progress.Progress(
        progress.TextColumn(label), bar, *columns, console=console, transient=True
    )
