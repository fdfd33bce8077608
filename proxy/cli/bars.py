"""Progress bars on a terminal."""

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

from proxy.cli.formatting import count, printable, show_size
from proxy.cli.pulling import summary
from proxy.cli.replies import Document


class _Bar:
    """A progress bar on a terminal, above which lines are printed."""

    def __init__(self, label: str) -> None:
        console = Console(highlight=False)
        self._progress = Progress(*_columns(label, console.width), console=console, transient=True)
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _say(self, line: str) -> None:
        self._progress.console.print(Text(printable(line)), soft_wrap=True)


class VerifyBar(_Bar):
    """Shows events on a terminal: a bar, and above it a line for each bad blob."""

    def __init__(self) -> None:
        super().__init__("verifying")

    def show(self, event: Document) -> None:
        """Show one event; kinds that are not known are passed over."""
        match event["event"]:
            case "start":
                self._progress.update(self._task, total=event["bytes"])
                if event["resumed"]:
                    self._say("going on where the last run was interrupted")
            case "progress":
                self._progress.update(self._task, completed=event["bytes"])
            case "bad":
                self._say(_told(event))
            case "done":
                self._say(_summary(event))


class PullBar(_Bar):
    """Shows the events of one pull on a terminal: a bar, and then a line."""

    def __init__(self) -> None:
        super().__init__("pulling")

    def show(self, event: Document) -> None:
        """Show one event; kinds that are not known are passed over."""
        match event["event"]:
            case "progress":
                known = event["total"] or None
                self._progress.update(self._task, completed=event["bytes"], total=known)
            case "missing":
                self._say(f"{event['digest']}: could not be had: {event['reason']}")
            case "done":
                self._say(summary(event))


def _columns(what: str, width: int) -> list[ProgressColumn]:
    """Return what fits into a terminal of that width beside the bar."""
    columns: list[ProgressColumn] = [TaskProgressColumn()]
    if width >= 48:
        columns.append(TimeRemainingColumn())
    if width >= 80:
        columns = [DownloadColumn(binary_units=True), TransferSpeedColumn(), *columns]
    return [TextColumn(what), BarColumn(bar_width=max(8, min(40, width - 60))), *columns]


def _told(bad: Document) -> str:
    parts = [f"bad: {bad['digest']}: {bad['reason']}"]
    if bad["quarantined"]:
        parts.append(f"moved to {bad['quarantined']}")
    if bad["repaired"] is not None:
        failed = "could not be fetched again"
        if failure := bad.get("failure"):
            failed += f": {failure}"
        parts.append("fetched again" if bad["repaired"] else failed)
    if bad["images"]:
        parts.append("belongs to " + ", ".join(bad["images"]))
    return "; ".join(parts)


def _summary(done: Document) -> str:
    extent = f"{count(done['blobs'], 'blob')}, {show_size(done['bytes'])}"
    if not done["bad"]:
        return f"verified {extent}: all good"
    return f"verified {extent}: {done['bad']:,} bad, {done['repaired']:,} of them repaired"
