"""``millpond pull`` and ``millpond refresh``: fetch images, or check where their tags point."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from proxy.cli.command import JsonOption, Work, for_each, on_server
from proxy.cli.formatting import fail, print_line
from proxy.cli.progress import Display, follow
from proxy.core.platforms import own_platform
from proxy.core.units import show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document, ErrorAnswer

PULL: Final = "/-/pull"
REFRESH: Final = "/-/refresh"

ImageFilesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--file", "-f", metavar="FILE", help="List of images, such as a lock file. Repeatable."
    ),
]
ImagesArgument = Annotated[
    list[str], typer.Argument(metavar="IMAGE...", help="As nginx:1.27 or ghcr.io/org/app.")
]

PlatformOption = Annotated[
    list[str] | None,
    typer.Option(
        "--platform",
        metavar="OS/ARCH",
        help="Platform to fetch; may be repeated. Default: the one of this machine.",
    ),
]
AllPlatformsOption = Annotated[bool, typer.Option("--all-platforms", help="Fetch every platform.")]


@on_server
def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]...", help="As nginx:1.27 or ghcr.io/org/app."),
    ] = None,
    files: ImageFilesOption = None,
    platforms: PlatformOption = None,
    all_platforms: AllPlatformsOption = False,
    as_json: JsonOption = False,
) -> Work:
    """Fetch complete images into the cache before clients need them.

    Checks each tag at its registry, and fetches content that the cache does not have. Exit status
    1: some content could not be fetched.
    """
    wanted = chosen_platforms(platforms, all_platforms=all_platforms)

    return for_each(
        images_of(names, files),
        lambda client, name: pull_image(client, name, wanted, as_json=as_json),
        lambda error: 2 if error.status in (400, 404) else None,
    )


@on_server
def refresh(names: ImagesArgument, as_json: JsonOption = False) -> Work:
    """Check tags at their registry now, even if they are fresh.

    Fetches nothing: the next pull does. Exit status 1: the registry did not answer.
    """

    async def refresh_tag(client: "Client", name: str) -> int:
        answer = await client.ask("POST", REFRESH, {"image": name})
        print_line(json.dumps(answer) if as_json else _refreshed(answer))
        return 0

    return for_each(names, refresh_tag, _status)


def images_of(names: list[str] | None, files: list[Path] | None) -> list[str]:
    """Return the images that arguments and lists name; none at all ends the command."""
    from proxy.services.image_files import lines  # noqa: PLC0415 - not needed for help

    images = list(names or ())
    for file in files or ():
        try:
            found = lines.read(file.read_text(), str(file))
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{file}: {error.strerror if isinstance(error, OSError) else 'not UTF-8 text'}")
        if found.problems:
            fail(found.problems[0])
        images += (image.name for image in found.images)
    if not images:
        fail("name images, or a file that lists them with -f FILE")
    return list(dict.fromkeys(images))


def chosen_platforms(platforms: list[str] | None, *, all_platforms: bool) -> list[str]:
    """Return the platforms that options select: none means all. Wrong ones end the command."""
    if platforms and all_platforms:
        fail("--platform: goes without --all-platforms")
    if wrong := [one for one in platforms or () if "/" not in one or "," in one]:
        fail(f"--platform: {wrong[0]} is no platform; write linux/amd64 or linux/arm/v7")
    return [] if all_platforms else platforms or [own_platform()]


async def pull_image(client: "Client", name: str, platforms: list[str], *, as_json: bool) -> int:
    """Pull one image and show the progress; return the exit status. Raises ``ErrorAnswer``."""
    query = {"image": name, "platforms": ",".join(platforms)}
    done = await follow(client, PULL, query, _show, as_json=as_json)
    return 1 if done["missing"] else 0


def _show(display: Display, event: "Document") -> None:
    match event["event"]:
        case "progress":
            display.advance(event["bytes"], event["total"] or None)
        case "missing":
            display.print_error(f"{event['digest']}: could not be fetched: {event['reason']}")
        case "done":
            display.print_line(_summary(event))


def _summary(done: "Document") -> str:
    if done["digest"] is None:
        return f"{done['image']}: not pulled"
    warning = f"; {done['warning']}" if done["warning"] else ""
    if done["missing"]:
        return f"{done['image']}: incomplete, {done['missing']:,} missing{warning}"
    fetched = (
        f"{show_size(done['fetched_bytes'])} fetched"
        if done["fetched_bytes"]
        else "already in the cache"
    )
    return f"{done['image']}: whole, {show_size(done['bytes'])}, {fetched}{warning}"


def _status(error: "ErrorAnswer") -> int | None:
    if error.status == 401 or (error.status == 403 and "admin" in str(error)):
        return None
    return 2 if error.status == 400 else 1


def _refreshed(answer: "Document") -> str:
    before, now = answer["before"], answer["digest"]
    if before is None:
        return f"{answer['image']}: points to {now}"
    if not answer["changed"]:
        return f"{answer['image']}: unchanged, {now}"
    note = "" if answer["recorded"] else "; ignored: the registry's rate limit is nearly used up"
    return f"{answer['image']}: {before} → {now}{note}"
