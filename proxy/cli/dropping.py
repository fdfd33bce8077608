"""``millpond drop``: forget images, and free the disk of what nothing else needs."""

from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.formatting import complain, count, printable, show_size, table, terminal_width
from proxy.cli.options import (
    CaFileOption,
    ConfigOption,
    JsonOption,
    ServerOption,
    StorageOption,
    TokenFileOption,
)
from proxy.cli.replies import Document, Unanswered, parsed
from proxy.cli.server_options import ServerOptions, run

if TYPE_CHECKING:
    from proxy.cli.client import Client

PATH = "/-/images"
HEADS = ("NAME", "FREES")


def drop(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|PATTERN...",
            help="A tag as nginx:1.27, a digest as nginx@sha256:…, a repository, or a pattern.",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be dropped.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Remove images from the cache; the next pull fetches them anew.

    A name without a tag means all tags of the repository. What other images share stays. Pinned
    images stay: unpin them first. Exit status 1: some of it is pinned or not here.
    """
    show = _print_lines if as_json else _show_dry if dry_run else _show

    async def work(client: "Client") -> int:
        status = 0
        for name in names:
            query = {"match": name, "dry_run": str(dry_run).lower()}
            lines = [line async for line in client.lines("DELETE", PATH, query)]
            events = [parsed(line) for line in lines]
            if not events or events[-1].get("event") != "done":
                raise Unanswered("the server stopped before the end; try again")
            show(lines, events)
            done = events[-1]
            if not done["images"] and not done["blobs"] and not done["refused"]:
                complain(f"{name}: nothing here has that name{_hint(name)}")
                status = 1
            status = 1 if done["refused"] else status
        return status

    run(ServerOptions(config, storage, server, token_file, ca_file), work)


def _print_lines(lines: list[bytes], _: list[Document]) -> None:
    for line in lines:
        typer.echo(line)


def _show_dry(_: list[bytes], events: list[Document]) -> None:
    _show_images(events, "would drop")


def _show(_: list[bytes], events: list[Document]) -> None:
    _show_images(events, "dropped")


def _show_images(events: list[Document], verb: str) -> None:
    *images, done = events
    rows = [(event["name"], show_size(event["bytes"])) for event in images if event["dropped"]]
    if rows:
        for line in table(HEADS, rows, terminal_width()):
            typer.echo(printable(line))
    for event in images:
        if not event["dropped"]:
            complain(f"{event['name']}: stays: {event['reason']}")
    if done["images"] or done["blobs"]:
        extent = f"{count(done['images'], 'image')}, {show_size(done['bytes'])}"
        typer.echo(f"{verb}: {extent}")


def _hint(name: str) -> str:
    return "; ** matches across slashes" if "*" in name and "**" not in name else ""
