"""Shared options of commands, and the call of a server. Imports only what ``--help`` needs."""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from proxy.cli.formatting import fail, print_error

if TYPE_CHECKING:
    from proxy.cli.client import Client, ErrorAnswer

Value = TypeVar("Value")
Work = Callable[["Client"], Awaitable[int]]
"""Asks a server; returns the exit status."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML settings; else $MILLPOND_CONFIG, else /etc/millpond/config.yaml if it exists.",
    ),
]
StorageOption = Annotated[
    Path | None, typer.Option("--storage", metavar="DIR", help="Directory of the cache.")
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Ask this server instead of the one on the admin socket."
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="File with the admin token of --server."),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file", metavar="FILE", help="PEM file of an authority to trust for --server."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Only list what would be removed; remove nothing.")
]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The server that a command uses: the one of a cache, or the one at an address."""

    config: Path | None
    storage: Path | None
    server: str | None
    token_file: Path | None
    ca_file: Path | None
    may_start: bool = True
    """Without a server that has the cache, the command runs the proxy itself."""


def overrides(listen: str | None, storage: Path | None, *, offline: bool) -> dict[str, Any]:
    """Return the settings that options of ``serve`` replace."""
    settings: dict[str, Any] = {}
    if listen is not None:
        settings["listen"] = listen
    if storage is not None:
        settings["storage"] = {"path": str(storage)}
    if offline:
        settings["offline"] = True
    return settings


def on_server(command: Callable[..., Work]) -> Callable[..., None]:
    """Make a command of a function that returns the work to do with a server.

    The command has the parameters of the function, and the options that choose the server; the
    function may take one of them, ``config``.
    """
    return _made(command, partial(ServerOptions, may_start=True))


def on_running_server(command: Callable[..., Work]) -> Callable[..., None]:
    """Make a command as ``on_server`` does, which fails if no server has the cache."""
    return _made(command, partial(ServerOptions, may_start=False))


def _made(
    command: Callable[..., Work], options: Callable[..., ServerOptions]
) -> Callable[..., None]:
    taken = inspect.signature(command).parameters
    takes_config = "config" in taken

    def run(
        config: ConfigOption = None,
        storage: StorageOption = None,
        server: ServerOption = None,
        token_file: TokenFileOption = None,
        ca_file: CaFileOption = None,
        **own: Any,
    ) -> None:
        if takes_config:
            own["config"] = config
        work = command(**own)
        from proxy.cli import connect  # noqa: PLC0415 - it imports all of the proxy

        connect.run(options(config, storage, server, token_file, ca_file), work)

    *shared, _ = inspect.signature(run).parameters.values()
    parameters = [*(one for one in taken.values() if one.name != "config"), *shared]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def for_each(
    names: Iterable[str],
    act: Callable[["Client", str], Awaitable[int]],
    status_of: Callable[["ErrorAnswer"], int | None] = lambda _: None,
) -> Work:
    """Return work that acts on every name; its exit status is the highest of all.

    A refusal is printed and does not stop the others; ``status_of`` returns its exit status, or
    None for one that ends the command.
    """

    async def work(client: "Client") -> int:
        from proxy.cli.client import ErrorAnswer  # noqa: PLC0415 - aiohttp, which help does without

        highest = 0
        for name in names:
            try:
                status = await act(client, name)
            except ErrorAnswer as error:
                refusal = status_of(error)
                if refusal is None:
                    raise
                print_error(str(error) if repr(name) in str(error) else f"{name}: {error}")
                status = refusal
            highest = max(highest, status)
        return highest

    return work


def parsed_option(flag: str, text: str, parse: Callable[[str], Value]) -> Value:
    """Return what ``parse`` makes of an option's text; on ``ValueError`` end the command."""
    try:
        return parse(text)
    except ValueError as error:
        fail(f"{flag}: {error}")
