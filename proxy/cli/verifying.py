"""``millpond verify``: hash everything that is held once more."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.formatting import EventLines, complain, is_terminal
from proxy.cli.options import (
    CaFileOption,
    ConfigOption,
    JsonOption,
    ServerOption,
    StorageOption,
    TokenFileOption,
    rate_of,
)
from proxy.cli.replies import Document, Unanswered, parsed
from proxy.cli.server_options import ServerOptions, run

if TYPE_CHECKING:
    from proxy.cli.client import Client

PATH = "/-/verify"


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch what is bad again from its registry.")
    ] = False,
    rate: Annotated[
        str, typer.Option("--rate", metavar="RATE", help="Read no faster, as 50MB/s; 0: no limit.")
    ] = "0",
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, not where the last run was interrupted.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    storage: StorageOption = None,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Hash all that is held again, and take what is bad out of the cache.

    Bad files go to quarantine/ in the cache, with a note. May be interrupted; the next run goes
    on from there. Exit status 1: bad content was found and not repaired. With --json, or when
    the output is no terminal, it is JSON, an event a line, and tells the progress once a minute.
    """
    query = {
        "repair": str(repair).lower(),
        "rate": str(rate_of("--rate", rate)),
        "restart": str(restart).lower(),
    }

    async def work(client: "Client") -> int:
        import asyncio  # noqa: PLC0415 - it is here already; help does without it

        try:
            if as_json or not is_terminal():
                return await _verified(client, query, EventLines().show)
            from proxy.cli.bars import VerifyBar  # noqa: PLC0415 - rich's bars, for terminals only

            with VerifyBar() as bar:
                return await _verified(client, query, lambda _, event: bar.show(event))
        except asyncio.CancelledError:
            complain("interrupted; the next verify goes on from here")
            raise

    run(ServerOptions(config, storage, server, token_file, ca_file), work)


async def _verified(
    client: "Client", query: dict[str, str], show: Callable[[bytes, Document], None]
) -> int:
    """Show every event; return the exit status."""
    last = Document()
    async for line in client.lines("POST", PATH, query):
        last = parsed(line)
        show(line, last)
    if last.get("event") != "done":
        raise Unanswered("the server stopped before the end; the next verify goes on from there")
    return 1 if last["bad"] > last["repaired"] else 0
