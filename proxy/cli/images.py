"""``millpond ls`` and ``millpond drop``: list and remove images."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.command import DryRunOption, JsonOption, Work, for_each, on_server
from proxy.cli.formatting import (
    age,
    count,
    is_terminal,
    moment,
    print_error,
    print_line,
    print_rows,
    print_table,
)
from proxy.core.units import show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document

PATH = "/-/images"


@on_server
def ls(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", help="Only these, as nginx, nginx:1.* or 'ghcr.io/org/*'."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> Work:
    """List the images that the cache knows.

    STATE is whole if the cache has all of an image, partial if parts are missing, and absent if
    it has only the name. While a tag is held, Millpond serves an older image. KEPT is the reason
    why an image is not evicted: pinned, or in use. Images share layers, so the sum of their sizes
    is more than the size of the cache.
    """
    query = {"match": pattern} if pattern is not None else {}

    async def work(client: "Client") -> int:
        if as_json:
            async for line in client.lines("GET", PATH, query):
                typer.echo(line)
            return 0
        states = Counter[str]()

        async def rows() -> AsyncIterator[tuple[str, ...]]:
            async for image in client.objects(PATH, query):
                states[image["state"]] += 1
                yield _row(image)

        await print_rows(("NAME", "STATE", "SIZE", "LAST USED", "KEPT"), rows())
        if not states:
            print_error(f"no image matches {pattern}" if pattern else "the cache has no images")
        elif is_terminal():
            cache = (await client.ask("GET", "/-/stats"))["cache"]
            print_line(
                f"{count(states.total(), 'image')}: {_shown(states)}; the cache takes "
                f"{show_size(cache['bytes'])} of {show_size(cache['limit_bytes'])}"
            )
        return 0

    return work


def _row(image: "Document") -> tuple[str, ...]:
    state, missing = image["state"], image["missing"]
    state = f"partial: {missing} missing" if state == "partial" else state
    if (until := image.get("held_until")) is not None:
        state += f", held until {moment(until)}"
    reasons = ("pinned" if image["pinned"] else "", "in use" if image["in_use"] else "")
    return (
        image["name"],
        state,
        show_size(image["held_bytes"]),
        age(image["last_used"]),
        ", ".join(filter(None, reasons)),
    )


def _shown(states: Counter[str]) -> str:
    known = [state for state in ("whole", "partial", "absent") if states[state]]
    return ", ".join(f"{states[state]:,} {state}" for state in known)


@on_server
def drop(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|PATTERN...",
            help="A tag as nginx:1.27, a digest as nginx@sha256:…, a repository, or a pattern.",
        ),
    ],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> Work:
    """Remove images from the cache; the next pull fetches them again.

    A name without a tag means all tags of the repository. Content that other images share stays,
    and so do pinned images: unpin them first. Exit status 1: an image is pinned or not cached.
    """

    async def drop_images(client: "Client", name: str) -> int:
        lines: list[tuple[bytes, Document]] = []
        query = {"match": name, "dry_run": str(dry_run).lower()}
        done = await client.follow("DELETE", PATH, query, lambda *line: lines.append(line))
        if as_json:
            for line, _ in lines:
                typer.echo(line)
        else:
            _show_dropped([event for _, event in lines], "would drop" if dry_run else "dropped")
        if done["images"] or done["blobs"] or done["refused"]:
            return 1 if done["refused"] else 0
        hint = "; ** matches across slashes" if "*" in name and "**" not in name else ""
        print_error(f"{name}: no such image in the cache{hint}")
        return 1

    return for_each(names, drop_images)


def _show_dropped(events: "list[Document]", verb: str) -> None:
    *images, done = events
    rows = [(image["name"], show_size(image["bytes"])) for image in images if image["dropped"]]
    if rows:
        print_table(("NAME", "FREES"), rows)
    for image in images:
        if not image["dropped"]:
            print_error(f"{image['name']}: stays: {image['reason']}")
    if done["images"] or done["blobs"]:
        print_line(f"{verb}: {count(done['images'], 'image')}, {show_size(done['bytes'])}")
