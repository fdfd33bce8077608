"""``millpond evict`` and ``millpond in-use``: what goes when room is needed, and what does not."""

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.formatting import (
    UNKNOWN,
    age,
    complain,
    count,
    moment,
    printable,
    refuse,
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
    bytes_of,
    seconds_of,
)
from proxy.cli.replies import Document, parsed
from proxy.cli.server_options import ServerOptions, run

if TYPE_CHECKING:
    from proxy.cli.client import Client

EVICT = "/-/evict"
HEADS = ("IMAGE", "BECOMES", "LOSES", "BLOBS", "LAST USED")


def evict(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="How much should go, as 10GiB.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the images that would lose content.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Make room now, from what has not been used for longest."""
    wanted = bytes_of("SIZE", size)
    if wanted == 0:
        refuse("SIZE: must be more than 0")

    async def work(client: "Client") -> int:
        if dry_run and as_json:
            async for line in client.lines("GET", EVICT, {"bytes": str(wanted)}):
                typer.echo(line)
        elif dry_run:
            await _foretell(client, wanted)
        elif as_json:
            typer.echo(await client.read("POST", EVICT, {"bytes": str(wanted)}))
        else:
            await _evict(client, wanted)
        return 0

    run(ServerOptions(config, storage, server, token_file, ca_file), work)


def in_use(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="Image references, one a line; - is stdin.")
    ],
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="NAME", help="Who says so; else this host's name."),
    ] = None,
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="DURATION", help="For how long it counts.")
    ] = "1h",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Say which images are running, so that eviction spares them.

    The newest list of a source replaces its last one. For example, every some minutes:
    docker ps --format '{{.Image}}' | millpond in-use -
    """
    query = {"source": source or os.uname().nodename, "ttl": str(_whole_seconds(ttl))}
    references = _text(file)

    async def work(client: "Client") -> int:
        answer = await client.ask("PUT", "/-/in-use", query, references)
        for fault in answer["not_understood"]:
            complain(f"{'standard input' if file == '-' else file}: {fault}")
        if as_json:
            typer.echo(json.dumps(answer))
            return 0
        images, until = count(answer["images"], "image"), moment(answer["expires_at"])
        typer.echo(printable(f"{answer['source']}: {images} in use until {until}"))
        return 0

    run(ServerOptions(config, storage, server, token_file, ca_file), work)


async def _foretell(client: "Client", wanted: int) -> None:
    """List the images that would lose content for ``wanted`` bytes."""
    total, coldest, rows = Document(), None, []
    async for line in client.lines("GET", EVICT, {"bytes": str(wanted)}):
        entry = parsed(line)
        if "digest" in entry:
            coldest = coldest or age(entry["last_used"])
        elif "image" in entry:
            rows.append(_row(entry))
        else:
            total = entry
    if rows:
        for text in table(HEADS, rows, terminal_width()):
            typer.echo(printable(text))
    since = f"; the coldest was last used {coldest} ago" if coldest is not None else ""
    typer.echo(f"would be evicted: {_extent(total)}{since}")
    _mention_shortfall(total, wanted)


def _row(image: Document) -> tuple[str, ...]:
    """Return the cells of an image that loses content; content of no image has no name."""
    name = image["image"] if image["image"] is not None else "(content of no tag)"
    state = image["state"] if image["state"] is not None else UNKNOWN
    return (name, state, show_size(image["bytes"]), f"{image['blobs']:,}", age(image["last_used"]))


async def _evict(client: "Client", wanted: int) -> None:
    total = await client.ask("POST", EVICT, {"bytes": str(wanted)})
    coldest = None
    async for line in client.lines("GET", EVICT, {"bytes": "1"}):
        entry = parsed(line)
        coldest = coldest or entry.get("last_used")
    since = f"; the coldest that is left was last used {age(coldest)} ago" if coldest else ""
    typer.echo(f"evicted: {_extent(total)}{since}")
    _mention_shortfall(total, wanted)


def _mention_shortfall(total: Document, wanted: int) -> None:
    if total["bytes"] < wanted:
        complain("no more may go: the rest is pinned, in use or too new, or there is none")


def _extent(total: Document) -> str:
    return f"{count(total['blobs'], 'blob')}, {show_size(total['bytes'])}"


def _whole_seconds(ttl: str) -> int:
    seconds = seconds_of("--ttl", ttl)
    if not math.isfinite(seconds) or seconds < 1:
        refuse("--ttl: must end, and last a second at least; write 10m, 1h or 7d")
    return math.ceil(seconds)


def _text(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        refuse(f"{file}: cannot be read: {error.strerror}")
