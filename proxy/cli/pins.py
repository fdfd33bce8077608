"""``millpond pin``, ``unpin`` and ``pins``: images that are never evicted."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.command import JsonOption, Work, for_each, on_server
from proxy.cli.formatting import count, is_terminal, print_error, print_line, print_table
from proxy.cli.pulling import pull_image
from proxy.core.platforms import own_platform
from proxy.core.units import show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document, ErrorAnswer

PATH = "/-/pins"

NamesArgument = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="As nginx:1.27, by digest, or 'ghcr.io/org/*'."),
]


@on_server
def pin(
    names: NamesArgument,
    fetch: Annotated[
        bool,
        typer.Option("--pull", help="Fetch missing images, for the platform of this machine."),
    ] = False,
    as_json: JsonOption = False,
) -> Work:
    """Protect images from eviction.

    Millpond keeps all content of the images, even after a restart. A pattern protects all images
    that it matches, now and later. Exit status 1: the images would not fit into the cache.
    """

    async def add(client: "Client", name: str) -> int:
        done = await client.ask("PUT", PATH, {"pin": name})
        text = f"{done['pin']}: pinned{_extent(done, is_pulling=fetch)}"
        print_line(json.dumps(done) if as_json else text)
        if not fetch or done["images"]:
            return 0
        return await pull_image(client, done["pin"], [own_platform()], as_json=as_json)

    return for_each(names, add, _status)


@on_server
def unpin(names: NamesArgument, as_json: JsonOption = False) -> Work:
    """Remove pins; the images stay until the cache needs their space."""

    async def remove(client: "Client", name: str) -> int:
        done = await client.ask("DELETE", PATH, {"pin": name})
        pins = [f"{pin}: no longer pinned" for pin in done.get("removed", [done["pin"]])]
        for line in [json.dumps(done)] if as_json else pins:
            print_line(line)
        return 0

    return for_each(names, remove, _status)


@on_server
def list_pins(as_json: JsonOption = False) -> Work:
    """List the pins, configured ones included, and the images that they protect."""

    async def work(client: "Client") -> int:
        if as_json:
            typer.echo(await client.read("GET", PATH))
            return 0
        answer = await client.ask("GET", PATH)
        pins = answer["pins"]
        if not pins:
            print_error("nothing is pinned")
            return 0
        rows = [
            (one["pin"], one["source"], f"{one['images']:,}", show_size(one["bytes"]))
            for one in pins
        ]
        print_table(("PIN", "SOURCE", "IMAGES", "SIZE"), rows)
        for one in pins:
            if one["refused"]:
                print_error(f"{one['pin']}: not honoured: {one['refused']}")
        if is_terminal():
            limit = show_size(answer["limit_bytes"])
            print_line(f"all pins: {show_size(answer['bytes'])} of {limit}")
        return 0

    return work


def _status(error: "ErrorAnswer") -> int | None:
    return {400: 2, 404: 2, 409: 1}.get(error.status)


def _extent(pin: "Document", *, is_pulling: bool) -> str:
    if pin["refused"]:
        return f", but not honoured: {pin['refused']}"
    if pin["images"]:
        return f", {count(pin['images'], 'image')}, {show_size(pin['bytes'])}"
    is_one_image = not set("*?[") & set(pin["pin"]) and "/" in pin["pin"]
    hint = f"; to fetch it: millpond pull {pin['pin']}" if is_one_image and not is_pulling else ""
    return f"; not in the cache yet{hint}"
