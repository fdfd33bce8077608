"""``millpond verify``: hash the content of the cache again."""

from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.command import JsonOption, Work, on_server
from proxy.cli.formatting import count, fail, is_terminal, print_error
from proxy.cli.progress import Display, follow
from proxy.core.units import parse_size, show_size

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document

PATH = "/-/verify"


@on_server
def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch damaged content again from its registry.")
    ] = False,
    rate: Annotated[
        str,
        typer.Option(
            "--rate", metavar="RATE", help="Maximum reading speed, as 50MB/s; 0: no limit."
        ),
    ] = "0",
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again instead of continuing the last run.")
    ] = False,
    as_json: JsonOption = False,
) -> Work:
    """Hash all content of the cache again, and remove damaged content.

    Damaged files are moved to quarantine/ in the cache, with a note. An interrupted run continues
    next time. Exit status 1: there is damaged content that was not repaired. With --json, or if
    the output is no terminal, the output is JSON, one event per line, with progress once a minute.
    """
    query = {
        "repair": str(repair).lower(),
        "rate": str(_rate(rate)),
        "restart": str(restart).lower(),
    }

    async def work(client: "Client") -> int:
        import asyncio  # noqa: PLC0415 - the client has imported it; help does without

        is_json = as_json or not is_terminal()
        try:
            done = await follow(client, PATH, query, _show, as_json=is_json)
        except asyncio.CancelledError:
            print_error("interrupted; the next verify continues from here")
            raise
        return 1 if done["bad"] > done["repaired"] else 0

    return work


def _rate(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        fail("--rate: not a rate; write 50MB/s, 20MiB/s, or 0 for no limit")


def _show(display: Display, event: "Document") -> None:
    match event["event"]:
        case "start":
            display.advance(0, event["bytes"])
            if event["resumed"]:
                display.print_line("continuing where the last run was interrupted")
        case "progress":
            display.advance(event["bytes"], None)
        case "bad":
            display.print_error(_bad(event))
        case "done":
            display.print_line(_summary(event))


def _bad(bad: "Document") -> str:
    parts = [f"bad: {bad['digest']}: {bad['reason']}"]
    if bad["quarantined"]:
        parts.append(f"moved to {bad['quarantined']}")
    if bad["repaired"]:
        parts.append("fetched again")
    elif bad["repaired"] is not None:
        failure = bad.get("failure")
        parts.append("could not be fetched again" + (f": {failure}" if failure else ""))
    if bad["images"]:
        parts.append("belongs to " + ", ".join(bad["images"]))
    return "; ".join(parts)


def _summary(done: "Document") -> str:
    extent = f"{count(done['blobs'], 'blob')}, {show_size(done['bytes'])}"
    if not done["bad"]:
        return f"verified {extent}: all good"
    return f"verified {extent}: {done['bad']:,} bad, {done['repaired']:,} of them repaired"
