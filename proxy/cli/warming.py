"""``millpond warm``: fetch complete images, with their referrers, before clients need them."""

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from proxy.cli.command import JsonOption, Work, on_server
from proxy.cli.formatting import count, fail, print_error, print_line, print_table
from proxy.cli.progress import Bars, bars
from proxy.cli.pulling import PULL, AllPlatformsOption, PlatformOption, chosen_platforms
from proxy.cli.selectors import (
    BuildArgsOption,
    FilesOption,
    NamesArgument,
    NoReferrersOption,
    WantedImage,
    gathered,
)
from proxy.core.selection import is_pattern
from proxy.core.units import show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document

EXPAND: Final = "/-/expand"
CONCURRENCY: Final = 4
"""Images that are fetched at the same time. The server bounds the blobs of all of them."""


@dataclass(slots=True)
class _Results:
    """The last event of each image, or why it could not be fetched."""

    done: dict[WantedImage, "Document"] = field(default_factory=dict)
    failed: dict[WantedImage, list[str]] = field(default_factory=dict)


@on_server
def warm(
    names: NamesArgument = None,
    files: FilesOption = None,
    platforms: PlatformOption = None,
    all_platforms: AllPlatformsOption = False,
    no_referrers: NoReferrersOption = False,
    build_args: BuildArgsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Fetch manifests only; show the bytes to fetch.")
    ] = False,
    as_json: JsonOption = False,
) -> Work:
    """Fetch complete images into the cache, with the manifests that refer to them.

    Cached content is not fetched again, so a new run continues an interrupted one. Exit status 1:
    the output lists images that could not be fetched.
    """
    if not names and not files:
        fail("name images, or a file that names them with -f FILE")
    wanted = tuple(chosen_platforms(platforms, all_platforms=all_platforms))
    wanted_images, problems = gathered(names, files, build_args, wanted)
    query = {
        "referrers": "false" if no_referrers else "true",
        "dry_run": "true" if dry_run else "false",
    }

    async def work(client: "Client") -> int:
        results = _Results()
        chosen = await _expanded(client, wanted_images, problems)
        if not chosen and not problems:
            problems.append("no image is named, so nothing is fetched")
        with bars(as_json=as_json) as display:
            slots = asyncio.Semaphore(CONCURRENCY)
            fetches = (
                _fetch(client, wanted_image, query, results, display, slots)
                for wanted_image in chosen
            )
            await _all(fetches)
        if not as_json:
            _print_summary(chosen, results, is_dry=dry_run)
        return _print_problems(results, problems)

    return work


async def _expanded(
    client: "Client", wanted_images: Iterable[WantedImage], problems: list[str]
) -> dict[WantedImage, None]:
    """Return the wishes, with each pattern replaced by the images that it selects."""
    chosen: dict[WantedImage, None] = {}
    for wanted_image in wanted_images:
        if not is_pattern(wanted_image.name):
            chosen.setdefault(wanted_image)
            continue
        answer = await client.ask("GET", EXPAND, {"match": wanted_image.name})
        notes, reasons = answer["notes"], answer["problems"]
        if wanted_image.is_listed:  # the user asked for what the registry lists
            notes, reasons = [], notes + reasons
        for note in notes:
            print_error(f"{wanted_image.name}: {note}")
        problems += (f"{wanted_image.name}: {reason}" for reason in reasons)
        chosen.update(
            dict.fromkeys(WantedImage(name, wanted_image.platforms) for name in answer["images"])
        )
    return chosen


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all work concurrently; on an error cancel the rest and raise it."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each, name="warm an image")
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _fetch(
    client: "Client",
    wanted_image: WantedImage,
    query: dict[str, str],
    results: _Results,
    display: Bars,
    slots: asyncio.Semaphore,
) -> None:
    from proxy.cli.client import ErrorAnswer  # noqa: PLC0415 - aiohttp, which help does without

    missing: list[str] = []

    def show(line: bytes, event: "Document") -> None:
        display.show(wanted_image.name, line, event)
        if event["event"] == "missing":
            about, reason = event["digest"], event["reason"]
            missing.append(reason if reason.startswith(about) else f"{about}: {reason}")
        if event["event"] == "done" and event["warning"] is not None:  # an old image was had
            missing.append(event["warning"])

    asked = {**query, "image": wanted_image.name, "platforms": ",".join(wanted_image.platforms)}
    async with slots:
        try:
            results.done[wanted_image] = await client.follow("POST", PULL, asked, show)
        except ErrorAnswer as error:
            if error.status in (401, 403):
                raise
            missing.append(str(error))
        finally:
            display.remove(wanted_image.name)
    if missing:
        results.failed[wanted_image] = missing


def _print_summary(chosen: Iterable[WantedImage], results: _Results, *, is_dry: bool) -> None:
    """Print the result of every image, and the totals."""
    column, head = ("to_fetch_bytes", "TO FETCH") if is_dry else ("fetched_bytes", "FETCHED")
    rows = []
    for wanted_image in chosen:
        if (done := results.done.get(wanted_image)) is None:
            continue
        state = "not yet" if is_dry and done[column] else "whole"
        if wanted_image in results.failed:
            state = "stale" if not done["missing"] else "incomplete" if done["total"] else "failed"
        platforms = " ".join(wanted_image.platforms) or "all"
        sizes = show_size(done["total"]), show_size(done[column])
        rows.append((str(done["image"]), platforms, state, *sizes))
    if rows:
        print_table(("IMAGE", "PLATFORMS", "STATE", "SIZE", head), rows)
    total = sum(done[column] for done in results.done.values())
    verb = "to fetch" if is_dry else "fetched"
    print_line(f"{count(len(rows), 'image')}, {show_size(total)} {verb}")


def _print_problems(results: _Results, problems: list[str]) -> int:
    """Print the problems; return the exit status."""
    for problem in problems:
        print_error(problem)
    for wanted_image, reasons in results.failed.items():
        for reason in reasons:
            print_error(reason if wanted_image.name in reason else f"{wanted_image.name}: {reason}")
    return 1 if problems or results.failed else 0
