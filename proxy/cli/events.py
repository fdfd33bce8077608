"""``millpond events``: recent and new events of the cache."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from proxy.cli.command import JsonOption, Work, on_running_server
from proxy.cli.formatting import fail, print_error, print_line

if TYPE_CHECKING:
    from proxy.cli.client import Client

PATH: Final = "/-/api/v1/events"
PAUSES: Final = (0.5, 1.0, 2.0, 5.0)
"""Seconds before each attempt to reach a server that has stopped answering."""


@on_running_server
def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")
    ] = False,
    kinds: Annotated[
        str | None,
        typer.Option("--kinds", metavar="KIND,...", help="Only these, such as tag-moved,denied."),
    ] = None,
    as_json: JsonOption = False,
) -> Work:
    """Show recent events: new content, moved tags, evictions, corruption, failures, denials.

    --follow also shows pulls. It continues if the server restarts.
    """
    from proxy.runtime.events import EventKind  # noqa: PLC0415 - asyncio, which help does without

    wanted = [kind.strip() for kind in kinds.split(",")] if kinds is not None else []
    for kind in wanted:
        if kind not in list(EventKind):
            fail(f"--kinds: there is no {kind!r}; there are {', '.join(EventKind)}")
    query = {"kinds": ",".join(wanted)} if wanted else {}

    def show(event: Mapping[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(event))
        else:
            print_line(line(event))

    async def work(client: "Client") -> int:
        if follow:
            async for event in _followed(client, query):
                show(event)
        else:
            recent = (await client.ask("GET", PATH, query | {"follow": "false"}))["events"]
            for event in recent:
                show(event)
            if not recent and not as_json:
                print_error("no events since the server started")
        return 0

    return work


async def _followed(client: "Client", query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Yield events without an end; a stream that breaks off is continued.

    Raises ``NoAnswer`` if there is no first answer, and ``ErrorAnswer``.
    """
    from proxy.cli.client import ErrorAnswer, NoAnswer  # noqa: PLC0415 - aiohttp, not for help

    last, failures, was_reached, is_reported = "", 0, False, False
    while True:
        try:
            async with client.events(PATH, query, last) as stream:
                failures, was_reached, is_reported = 0, True, False
                async for event in stream:
                    last = event.id
                    yield json.loads(event.data)
        except (NoAnswer, ErrorAnswer) as error:
            is_stopping = isinstance(error, ErrorAnswer) and error.status == 503
            if not was_reached or not (is_stopping or isinstance(error, NoAnswer)):
                raise
            if not is_reported:
                print_error(f"{error}; trying again")
            is_reported = True
        await asyncio.sleep(PAUSES[min(failures, len(PAUSES) - 1)])
        failures += 1


def line(event: Mapping[str, Any]) -> str:
    """Return an event in one line: when, what, to what, and its data."""
    moment = datetime.fromtimestamp(event["time"]).astimezone()
    data = " ".join(f"{name}={value}" for name, value in event["data"].items() if value is not None)
    return f"{moment:%Y-%m-%d %H:%M:%S}  {event['kind']:<13}  {event['subject']}  {data}".rstrip()
