"""``millpond evict`` and ``millpond in-use``: free space, and protect running images."""

import json
import math
import os
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.command import DryRunOption, JsonOption, Work, on_server, parsed_option
from proxy.cli.formatting import (
    UNKNOWN,
    age,
    count,
    fail,
    moment,
    print_error,
    print_line,
    print_table,
)
from proxy.core.units import parse_seconds, parse_size, show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document

PATH = "/-/evict"


@on_server
def evict(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Space to free, as 10GiB.")],
    dry_run: DryRunOption = False,
    bucket: Annotated[
        bool, typer.Option("--bucket", help="Free space in the bucket instead of on the disk.")
    ] = False,
    as_json: JsonOption = False,
) -> Work:
    """Free space now: remove the least recently used content."""
    wanted = parsed_option("SIZE", size, parse_size)
    if wanted == 0:
        fail("SIZE: must be more than 0")
    query = {"bytes": str(wanted)} | ({"tier": "bucket"} if bucket else {})

    async def work(client: "Client") -> int:
        if as_json and dry_run:
            async for line in client.lines("GET", PATH, query):
                typer.echo(line)
        elif as_json:
            typer.echo(await client.read("POST", PATH, query))
        else:
            total = await (_list_coldest(client, query) if dry_run else _evict(client, query))
            if total["bytes"] < wanted:
                print_error("nothing more can be evicted: the rest is pinned, in use, or too new")
        return 0

    return work


async def _list_coldest(client: "Client", query: dict[str, str]) -> "Document":
    """List the images that would lose content; return the total.

    The answer has a line for each blob, then one for each image, then the total.
    """
    from proxy.cli.client import Document  # noqa: PLC0415 - aiohttp, which help does without

    total, blobs, rows = Document(), [], []
    async for entry in client.objects(PATH, query):
        if "digest" in entry:
            blobs.append(entry["last_used"])
        elif "image" in entry:
            rows.append(_row(entry))
        else:
            total = entry
    if rows:
        print_table(("IMAGE", "BECOMES", "LOSES", "BLOBS", "LAST USED"), rows)
    since = f"; the oldest use was {age(blobs[0])} ago" if blobs else ""
    print_line(f"would be evicted: {_extent(total)}{since}")
    return total


def _row(image: "Document") -> tuple[str, ...]:
    name = image["image"] if image["image"] is not None else "(content of no tag)"
    state = image["state"] if image["state"] is not None else UNKNOWN
    return (name, state, show_size(image["bytes"]), f"{image['blobs']:,}", age(image["last_used"]))


async def _evict(client: "Client", query: dict[str, str]) -> "Document":
    total = await client.ask("POST", PATH, query)
    async with aclosing(client.objects(PATH, query | {"bytes": "1"})) as left:
        first = await anext(left, None)
    coldest = None if first is None else first.get("last_used")
    since = f"; the oldest use of the rest was {age(coldest)} ago" if coldest else ""
    print_line(f"evicted: {_extent(total)}{since}")
    return total


def _extent(total: "Document") -> str:
    return f"{count(total['blobs'], 'blob')}, {show_size(total['bytes'])}"


@on_server
def in_use(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE|-", help="Image references, one per line; - is stdin."),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--source", metavar="NAME", help="Name of the list. Default: this host's name."
        ),
    ] = None,
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="DURATION", help="How long the list is valid.")
    ] = "1h",
    as_json: JsonOption = False,
) -> Work:
    """Report which images are running, so that they are not evicted.

    The newest list of a source replaces its previous one. For example, every few minutes:
    docker ps --format '{{.Image}}' | millpond in-use -
    """
    seconds = parsed_option("--ttl", ttl, parse_seconds)
    if not math.isfinite(seconds) or seconds < 1:
        fail("--ttl: must end, and last a second at least; write 10m, 1h or 7d")
    query = {"source": source or os.uname().nodename, "ttl": str(math.ceil(seconds))}
    references = _content(file)

    async def work(client: "Client") -> int:
        answer = await client.ask("PUT", "/-/in-use", query, references)
        for fault in answer["not_understood"]:
            print_error(f"{'standard input' if file == '-' else file}: {fault}")
        images, until = count(answer["images"], "image"), moment(answer["expires_at"])
        text = f"{answer['source']}: {images} in use until {until}"
        print_line(json.dumps(answer) if as_json else text)
        return 0

    return work


def _content(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        fail(f"{file}: cannot be read: {error.strerror}")
