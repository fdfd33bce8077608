"""``millpond stats`` and ``millpond top``: the server's activity, once or continuously."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from proxy.cli.command import JsonOption, Work, on_running_server
from proxy.cli.formatting import is_terminal, print_error, screen_width

if TYPE_CHECKING:
    from proxy.cli.client import Client, Document

Seen = TypeVar("Seen")
Show = Callable[[list[str]], None]

STATS: Final = "/-/stats"
TOP: Final = "/-/api/v1/top"
EVERY: Final = 2.0
"""Seconds between two looks at the server."""
MOST: Final = 100


class SortKey(StrEnum):
    """The order of images."""

    PULLS = "pulls"
    BYTES = "bytes"


@on_running_server
def stats(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat every two seconds.")] = False,
    as_json: JsonOption = False,
) -> Work:
    """Show hit ratio, saved bytes, upstreams with their budgets, the cache, and downloads.

    Counters start at zero when the server starts. With --watch, a pipe gets one line per update.
    """
    from proxy.cli import overview  # noqa: PLC0415 - for this command only

    def lines(document: "Document") -> list[str]:
        if as_json:
            return [json.dumps(document)]
        if watch and not is_terminal():
            return [overview.stats_line(document)]
        return overview.stats_lines(document, screen_width())

    async def work(client: "Client") -> int:
        async def look() -> "Document":
            return await client.ask("GET", STATS)

        if watch:
            with _screen(is_live=is_terminal() and not as_json) as show:
                async for document in _looks(look):
                    show(lines(document))
        _print(lines(await look()))
        return 0

    return work


@on_running_server
def top(
    by: Annotated[SortKey, typer.Option("--by", help="Order of the images.")] = SortKey.PULLS,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MOST, help="Number of images.")
    ] = 10,
    as_json: JsonOption = False,
) -> Work:
    """Show the images with the most pulls or bytes, the busiest clients, and downloads.

    A terminal is refreshed every two seconds, until Ctrl-C; a pipe gets the output once.
    """
    from proxy.cli import overview  # noqa: PLC0415 - for this command only

    async def work(client: "Client") -> int:
        async def look() -> "tuple[list[Any], Document]":
            query = {"by": by.value, "limit": str(limit)}
            images = (await client.ask("GET", TOP, query))["images"]
            return images, await client.ask("GET", STATS)

        def lines(seen: "tuple[list[Any], Document]") -> list[str]:
            return overview.top_lines(*seen, screen_width())

        if is_terminal() and not as_json:
            with _screen(is_live=True) as show:
                async for seen in _looks(look):
                    show(lines(seen))
        images, document = await look()
        if as_json:
            shown = {name: document[name] for name in ("clients", "downloads")}
            _print([json.dumps({"images": images, **shown})])
        else:
            _print(lines((images, document)))
        return 0

    return work


async def _looks(look: Callable[[], Awaitable[Seen]]) -> AsyncIterator[Seen]:
    """Yield the server's state repeatedly; wait for a server that stops answering.

    Raises ``NoAnswer`` if it does not answer the first time, and ``ErrorAnswer``.
    """
    from proxy.cli.client import NoAnswer  # noqa: PLC0415 - aiohttp, which help does without

    yield await look()
    is_away = False
    while True:
        await asyncio.sleep(EVERY)
        try:
            seen = await look()
        except NoAnswer as error:
            if not is_away:
                print_error(f"{error}; trying again")
            is_away = True
        else:
            is_away = False
            yield seen


def _print(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)


@contextmanager
def _screen(*, is_live: bool) -> Iterator[Show]:
    """Return a function that shows lines: over the last ones if it is live, else below them."""
    if not is_live:
        yield _print
        return
    from rich.console import Console  # noqa: PLC0415 - for terminals only
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, emoji=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda lines: live.update(Text("\n".join(lines), no_wrap=True), refresh=True)
