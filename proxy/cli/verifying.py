"""``millpond verify``: hash everything that is held once more."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Self

import typer
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

from proxy.cli.client import Client, Document, Unanswered, parsed
from proxy.cli.options import (
    ConfigOption,
    ServerOption,
    StorageOption,
    TokenFileOption,
    rate_of,
)
from proxy.cli.reach import Door, run
from proxy.cli.words import complain, count, is_terminal, printable, show_size

PATH = "/-/verify"


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch what is bad again from its registry.")
    ] = False,
    rate: Annotated[
        str, typer.Option("--rate", metavar="RATE", help="Read no faster, as 50MB/s; 0: no limit.")
    ] = "0",
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, not where the last run was interrupted.")
    ] = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Hash all that is held again, and take what is bad out of the cache.

    Bad files go to quarantine/ in the cache, with a note. May be interrupted; the next run goes
    on from there. Exit status 1: bad content was found and not repaired. Not to a terminal, the
    output is JSON, an event a line.
    """
    query = {
        "repair": str(repair).lower(),
        "rate": str(rate_of("--rate", rate)),
        "restart": str(restart).lower(),
    }

    async def work(client: Client) -> int:
        try:
            if not is_terminal():
                return await _verified(client, query, lambda line, _: typer.echo(line))
            with _Bar() as bar:
                return await _verified(client, query, lambda _, event: bar.show(event))
        except asyncio.CancelledError:
            complain("interrupted; the next verify goes on from here")
            raise

    run(Door(config, storage, server, token_file), work)


async def _verified(
    client: Client, query: dict[str, str], show: Callable[[bytes, Document], None]
) -> int:
    """Show every event; return the exit status."""
    last = Document()
    async for line in client.lines("POST", PATH, query):
        last = parsed(line)
        show(line, last)
    if last.get("event") != "done":
        raise Unanswered("the server stopped before the end; the next verify goes on from there")
    return 1 if last["bad"] > last["repaired"] else 0


class _Bar:
    """Shows events on a terminal: a bar, and above it a line for each bad blob."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        self._progress = Progress(*_columns(console.width), console=console, transient=True)
        self._task = self._progress.add_task("verifying", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

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

    def _say(self, line: str) -> None:
        self._progress.console.print(Text(printable(line)), soft_wrap=True)


def _columns(width: int) -> list[ProgressColumn]:
    """Return what fits into a terminal of that width beside the bar."""
    columns: list[ProgressColumn] = [TaskProgressColumn()]
    if width >= 48:
        columns.append(TimeRemainingColumn())
    if width >= 80:
        columns = [DownloadColumn(binary_units=True), TransferSpeedColumn(), *columns]
    return [TextColumn("verifying"), BarColumn(bar_width=max(8, min(40, width - 60))), *columns]


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
