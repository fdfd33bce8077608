"""``millpond pull`` and ``millpond refresh``: fetch images, or ask where their tags point now."""

import json
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from proxy.cli.formatting import EventLines, complain, is_terminal, printable, refuse, show_size
from proxy.cli.options import (
    CaFileOption,
    ConfigOption,
    JsonOption,
    ServerOption,
    StorageOption,
    TokenFileOption,
)
from proxy.cli.replies import Document, Refused, Unanswered, parsed
from proxy.cli.server_options import ServerOptions, run

if TYPE_CHECKING:
    from proxy.cli.client import Client

PULL: Final = "/-/pull"
REFRESH: Final = "/-/refresh"
_MACHINES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "i686": "386",
}
"""What Linux calls machines, and what images call them (Go's GOARCH)."""

ImagesArgument = Annotated[
    list[str], typer.Argument(metavar="IMAGE...", help="As nginx:1.27 or ghcr.io/org/app.")
]


def pull(
    names: ImagesArgument,
    platforms: Annotated[
        list[str] | None,
        typer.Option(
            "--platform", metavar="OS/ARCH", help="Of which platform; else this machine's. Repeat."
        ),
    ] = None,
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="Of every platform.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Fetch whole images into the cache, so that they are here before somebody needs them.

    Asks the registry for what a tag points to now, and fetches what is not held. Exit status 1:
    something could not be had.
    """
    if platforms and all_platforms:
        refuse("--platform: goes without --all-platforms")
    if wrong := [one for one in platforms or () if "/" not in one or "," in one]:
        refuse(f"--platform: {wrong[0]} is no platform; write linux/amd64 or linux/arm/v7")
    wanted = [] if all_platforms else platforms or [own_platform()]

    async def work(client: "Client") -> int:
        status = 0
        for name in names:
            status = max(status, await pulled(client, name, wanted, as_json=as_json))
        return status

    run(ServerOptions(config, storage, server, token_file, ca_file), work)


def refresh(
    names: ImagesArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Ask the registry now where tags point, whatever is known of them.

    Fetches nothing: the next pull does. Exit status 1: the registry could not tell.
    """

    async def work(client: "Client") -> int:
        status = 0
        for name in names:
            try:
                answer = await client.ask("POST", REFRESH, {"image": name})
            except Refused as error:
                if error.status == 401 or (error.status == 403 and "admin" in str(error)):
                    raise
                complain(f"{name}: {error}")
                status = max(status, 2 if error.status == 400 else 1)
                continue
            if as_json:
                typer.echo(json.dumps(answer))
            else:
                typer.echo(printable(_refreshed(answer)))
        return status

    run(ServerOptions(config, storage, server, token_file, ca_file), work)


def own_platform() -> str:
    """Return this machine's platform, as ``linux/amd64``."""
    machine = platform.machine()
    return f"linux/{_MACHINES.get(machine, machine)}"


async def pulled(client: "Client", name: str, platforms: list[str], *, as_json: bool) -> int:
    """Pull one image and show how far it is; return the exit status."""
    query = {"image": name, "platforms": ",".join(platforms)}
    try:
        if as_json:
            return await _followed(client, query, EventLines().show)
        if not is_terminal():
            return await _followed(client, query, lambda _, event: show(event))
        from proxy.cli.bars import PullBar  # noqa: PLC0415 - rich's bars, for terminals only

        with PullBar() as bar:
            return await _followed(client, query, lambda _, event: bar.show(event))
    except Refused as error:
        if error.status not in (400, 404):
            raise
        complain(str(error) if name in str(error) else f"{name}: {error}")
        return 2


async def _followed(
    client: "Client", query: dict[str, str], show_event: Callable[[bytes, Document], None]
) -> int:
    last = Document()
    async for line in client.lines("POST", PULL, query):
        last = parsed(line)
        show_event(line, last)
    if last.get("event") != "done":
        raise Unanswered("the server stopped before the end; the next pull goes on from there")
    return 1 if last["missing"] else 0


def show(event: Document) -> None:
    """Print what is worth a line without a terminal."""
    match event["event"]:
        case "missing":
            complain(f"{event['digest']}: could not be had: {event['reason']}")
        case "done":
            typer.echo(printable(summary(event)))


def summary(done: Document) -> str:
    """Return in a line what came of a pull."""
    if done["digest"] is None:
        return f"{done['image']}: not pulled"
    warning = f"; {done['warning']}" if done["warning"] else ""
    if done["missing"]:
        return f"{done['image']}: incomplete, {done['missing']:,} missing{warning}"
    fetched = f"{show_size(done['fetched_bytes'])} fetched" if done["fetched_bytes"] else "all held"
    return f"{done['image']}: whole, {show_size(done['bytes'])}, {fetched}{warning}"


def _refreshed(answer: Document) -> str:
    before, now = answer["before"], answer["digest"]
    if before is None:
        return f"{answer['image']}: points to {now}"
    if not answer["changed"]:
        return f"{answer['image']}: unchanged, {now}"
    note = "" if answer["recorded"] else "; not taken: the registry's rate limit is nearly used up"
    return f"{answer['image']}: {before} → {now}{note}"
