"""``millpond pin``, ``unpin`` and ``pins``: what is kept whatever happens."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.formatting import (
    complain,
    count,
    is_terminal,
    printable,
    show_size,
    table,
    terminal_width,
)
from proxy.cli.options import (
    CaFileOption,
    ConfigOption,
    JsonOption,
    ServerOption,
    StorageOption,
    TokenFileOption,
)
from proxy.cli.pulling import own_platform, pulled
from proxy.cli.replies import Document, Refused
from proxy.cli.server_options import ServerOptions, run

if TYPE_CHECKING:
    from proxy.cli.client import Client

PATH = "/-/pins"
HEADS = ("PIN", "SOURCE", "IMAGES", "SIZE")

NamesArgument = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="As nginx:1.27, by digest, or 'ghcr.io/org/*'."),
]


def pin(
    names: NamesArgument,
    fetch: Annotated[
        bool, typer.Option("--pull", help="Fetch what is not here, for this machine's platform.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Keep images, whatever room is needed.

    All that an image consists of is kept, also after a restart. A pattern keeps whatever it
    matches, now and later. What would not fit into the cache is refused: exit status 1.
    """

    async def add(client: "Client", name: str) -> int:
        done = await client.ask("PUT", PATH, {"pin": name})
        if as_json:
            typer.echo(json.dumps(done))
        else:
            typer.echo(printable(_pinned(done, is_pulling=fetch)))
        if fetch and not done["images"]:
            return await pulled(client, done["pin"], [own_platform()], as_json=as_json)
        return 0

    run(ServerOptions(config, storage, server, token_file, ca_file), _each(names, add))


def unpin(
    names: NamesArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Let go of pinned images again; they stay until room is needed."""

    async def remove(client: "Client", name: str) -> int:
        done = await client.ask("DELETE", PATH, {"pin": name})
        if as_json:
            typer.echo(json.dumps(done))
            return 0
        for removed in done.get("removed", [done["pin"]]):
            typer.echo(printable(f"{removed}: no longer pinned"))
        return 0

    run(ServerOptions(config, storage, server, token_file, ca_file), _each(names, remove))


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

    run(ServerOptions(config, storage, server, token_file, ca_file), work)


def _each(
    names: list[str], act: Callable[["Client", str], Awaitable[int]]
) -> Callable[["Client"], Awaitable[int]]:
    """Act on every name, whatever comes of the others, and return the worst exit status."""

    async def work(client: "Client") -> int:
        status = 0
        for name in names:
            try:
                status = max(status, await act(client, name))
            except Refused as error:
                if error.status not in (400, 404, 409):
                    raise
                complain(str(error) if name in str(error) else f"{name}: {error}")
                status = max(status, 1 if error.status == 409 else 2)
        return status

    return work


def _pinned(done: Document, *, is_pulling: bool) -> str:
    if done["refused"]:
        return f"{done['pin']}: pinned, but not honoured: {done['refused']}"
    if done["images"]:
        return f"{done['pin']}: pinned, {_extent(done)}"
    text = f"{done['pin']}: pinned; nothing of it is held yet"
    is_one_image = not set("*?[") & set(done["pin"]) and "/" in done["pin"]
    return (
        f"{text}; to fetch it: millpond pull {done['pin']}"
        if is_one_image and not is_pulling
        else text
    )


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
