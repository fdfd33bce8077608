"""``millpond ls``: what is known here, and how much of it is held."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.formatting import age, complain, count, is_terminal, show_size, table, terminal_width
from proxy.cli.options import (
    CaFileOption,
    ConfigOption,
    JsonOption,
    ServerOption,
    StorageOption,
    TokenFileOption,
)
from proxy.cli.replies import Document, parsed
from proxy.cli.server_options import ServerOptions, run

if TYPE_CHECKING:
    from proxy.cli.client import Client

PATH = "/-/images"
HEADS = ("NAME", "STATE", "SIZE", "LAST USED", "KEPT")


def ls(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", help="Only these, as nginx, nginx:1.* or 'ghcr.io/org/*'."
        ),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """List the images that are known here.

    STATE is whole when all of an image can be served from here, partial when pieces are missing,
    absent when only its name is left. KEPT says why eviction spares it: pinned, or in use.
    Images share layers, so their sizes add up to more than the cache takes.
    """
    query = {"match": pattern} if pattern is not None else {}

    async def work(client: "Client") -> int:
        if as_json:
            async for line in client.lines("GET", PATH, query):
                typer.echo(line)
            return 0
        images = [parsed(line) async for line in client.lines("GET", PATH, query)]
        if images:
            _show(images)
        else:
            complain(f"no image matches {pattern}" if pattern else "no images are known here")
        if images and is_terminal():
            cache = Document((await client.ask("GET", "/-/stats"))["cache"])
            typer.echo(_totals(images, cache))
        return 0

    run(ServerOptions(config, storage, server, token_file, ca_file), work)


def _show(images: list[Document]) -> None:
    rows = [
        (
            image["name"],
            _state(image),
            show_size(image["held_bytes"]),
            age(image["last_used"]),
            ", ".join(_reasons(image)),
        )
        for image in images
    ]
    for line in table(HEADS, rows, terminal_width()):
        typer.echo(line)


def _state(image: Document) -> str:
    if image["state"] == "partial":
        return f"partial: {image['missing']} missing"
    return str(image["state"])


def _reasons(image: Document) -> list[str]:
    marks = (("pinned", "pinned"), ("in_use", "in use"))
    return [word for key, word in marks if image[key]]


def _totals(images: list[Document], cache: Document) -> str:
    states = Counter(image["state"] for image in images)
    told = ", ".join(
        f"{states[state]:,} {state}" for state in ("whole", "partial", "absent") if states[state]
    )
    room = f"{show_size(cache['bytes'])} of {show_size(cache['limit_bytes'])}"
    return f"{count(len(images), 'image')}: {told}; the cache takes {room}"
