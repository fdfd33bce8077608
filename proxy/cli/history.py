"""``millpond history`` and ``millpond lock``: the past and present digests of tags."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from proxy.cli.command import JsonOption, Work, for_each, on_server
from proxy.cli.formatting import UNKNOWN, fail, moment, print_error, print_line, print_table
from proxy.cli.pulling import ImageFilesOption, images_of

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document

HISTORY: Final = "/-/history"
RESOLVE: Final = "/-/resolve"


@on_server
def history(
    names: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="As nginx:1.27 or ghcr.io/org/app.")
    ],
    as_json: JsonOption = False,
) -> Work:
    """Show the digests of tags over time, as this cache saw them.

    Exit status 1: the cache has never seen a tag.
    """

    async def show(client: "Client", name: str) -> int:
        answer = await client.ask("GET", HISTORY, {"image": name})
        if as_json:
            print_line(json.dumps(answer))
            return 0
        print_line(answer["image"])
        print_table(("DIGEST", "FIRST SEEN", "LAST SEEN", "STATE"), _rows(answer))
        return 0

    return for_each(names, show, lambda error: 1 if error.status == 404 else None)


def _rows(answer: "Document") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for entry in answer["history"]:
        states = ["in the cache"] if entry["held"] else []
        states += [
            f"imported {moment(one['at'])} from {one['source']}"
            for one in answer["imported"]
            if one["digest"] == entry["digest"]
        ]
        if entry is answer["history"][-1] and answer["held_until"] is not None:
            states.append(f"held until {moment(answer['held_until'])}")
        first, last = (_time(entry[key]) for key in ("first_seen", "last_seen"))
        rows.append((entry["digest"], first, last, ", ".join(states)))
    return rows


def _time(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else moment(seconds)


@on_server
def lock(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="As nginx:1.27.")
    ] = None,
    files: ImageFilesOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to this file instead."),
    ] = None,
) -> Work:
    """Print each image with the digest that its tag points to now.

    `pull -f` and `warm -f` fetch these digests later, even if the tags have moved. Exit status 1: a
    tag has no digest; FILE is not written then.
    """
    images = images_of(names, files)
    lines: list[str] = []

    async def resolve(client: "Client", name: str) -> int:
        answer = await client.ask("GET", RESOLVE, {"image": name})
        if answer["warning"] is not None:
            print_error(f"{name}: {answer['warning']}")
        tagged = name.partition("@")[0] if "@" in name else answer["image"]
        lines.append(f"{tagged}@{answer['digest']}")
        return 0

    work = for_each(images, resolve, lambda error: None if error.status in (401, 403) else 1)

    async def write(client: "Client") -> int:
        if status := await work(client):
            if output is not None:
                print_error(f"{output}: not written")
            return status
        if output is None:
            for line in lines:
                print_line(line)
            return 0
        try:
            output.write_text("".join(f"{line}\n" for line in lines))
        except OSError as error:
            fail(f"{output}: {error.strerror}")
        return 0

    return write
