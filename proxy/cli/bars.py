"""A progress bar on a terminal."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from proxy.cli.formatting import printable


class Bar:
    """A progress bar, above which lines are printed. It disappears at the end."""

    def __init__(self, label: str) -> None:
        console = Console(highlight=False)
        self._progress = Progress(*_columns(label, console.width), console=console, transient=True)
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, completed: int, total: int | None) -> None:
        """Show how many bytes are completed; ``total`` None leaves the last total."""
        self._progress.update(self._task, completed=completed, total=total)

    def print_line(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(Text(printable(line)), soft_wrap=True)


def _columns(label: str, width: int) -> list[ProgressColumn]:
    """Return the columns that fit a terminal of that width."""
    columns: list[ProgressColumn] = [TaskProgressColumn()]
    if width >= 48:
        columns.append(TimeRemainingColumn())
    if width >= 80:
        columns = [DownloadColumn(binary_units=True), TransferSpeedColumn(), *columns]
    return [TextColumn(label), BarColumn(bar_width=max(8, min(40, width - 60))), *columns]
