"""``millpond pin``, ``unpin`` and ``pins``: what is kept whatever happens."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.door import Door, run
from proxy.cli.options import (
    CaFileOption,
    ConfigOption,
    JsonOption,
    ServerOption,
    StorageOption,
    TokenFileOption,
)
from proxy.cli.replies import Document, Refused
from proxy.cli.words import (
    complain,
    count,
    is_terminal,
    printable,
    show_size,
    table,
    terminal_width,
)

if TYPE_CHECKING:
    from proxy.cli.client import Client

PATH = "/-/pins"
HEADS = ("PIN", "SOURCE", "IMAGES", "SIZE")

NamesArgument = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Images as 'ghcr.io/org/app:1.0', or by digest."),
]


def pin(
    names: NamesArgument,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Keep images, whatever room is needed.

    All that an image consists of is kept, also after a restart. What would not fit into the cache
    is refused: exit status 1.
    """

    async def add(client: "Client", name: str) -> str:
        done = await client.ask("PUT", PATH, {"pin": name})
        if done["refused"]:
            return f"{done['pin']}: pinned, but not honoured: {done['refused']}"
        if not done["images"]:
            return f"{done['pin']}: pinned; nothing of it is held yet"
        return f"{done['pin']}: pinned, {_extent(done)}"

    run(Door(config, storage, server, token_file, ca_file), _each(names, add))


def unpin(
    names: NamesArgument,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Let go of pinned images again; they stay until room is needed."""

    async def remove(client: "Client", name: str) -> str:
        done = await client.ask("DELETE", PATH, {"pin": name})
        return f"{done['pin']}: no longer pinned"

    run(Door(config, storage, server, token_file, ca_file), _each(names, remove))


def list_pins(
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """List the pins, those of the configuration too, and what they keep."""

    async def work(client: "Client") -> int:
        if as_json:
            typer.echo(await client.read("GET", PATH))
            return 0
        answer = await client.ask("GET", PATH)
        _show([Document(entry) for entry in answer["pins"]])
        if is_terminal() and answer["pins"]:
            limit = show_size(answer["limit_bytes"])
            typer.echo(f"all pins: {show_size(answer['bytes'])} of {limit}")
        return 0

    run(Door(config, storage, server, token_file, ca_file), work)


def _each(
    names: list[str], act: Callable[["Client", str], Awaitable[str]]
) -> Callable[["Client"], Awaitable[int]]:
    """Return work that does one thing to every name and says what came of it."""

    async def work(client: "Client") -> int:
        status = 0
        for name in names:
            try:
                typer.echo(printable(await act(client, name)))
            except Refused as error:
                if error.status not in (400, 404, 409):
                    raise
                complain(str(error) if name in str(error) else f"{name}: {error}")
                status = max(status, 1 if error.status == 409 else 2)
        return status

    return work


def _show(pins: list[Document]) -> None:
    if not pins:
        complain("nothing is pinned")
        return
    rows = [
        (entry["pin"], entry["source"], f"{entry['images']:,}", show_size(entry["bytes"]))
        for entry in pins
    ]
    for line in table(HEADS, rows, terminal_width()):
        typer.echo(line)
    for entry in pins:
        if entry["refused"]:
            complain(f"{entry['pin']}: not honoured: {entry['refused']}")


def _extent(entry: Document) -> str:
    return f"{count(entry['images'], 'image')}, {show_size(entry['bytes'])}"
