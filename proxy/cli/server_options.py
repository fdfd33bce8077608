"""Runs a command's work with a server; imports what that needs only then, so help is fast."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from proxy.cli.client import Client

Work = Callable[["Client"], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the flags say about the server: a cache's settings, or an address and its secrets."""

    config: Path | None
    storage: Path | None
    server: str | None
    token_file: Path | None
    ca_file: Path | None = None


def run(door: ServerOptions, work: Work) -> NoReturn:
    """Do ``work`` with the server behind ``door`` and exit with the status that it returns.

    A wrong setting, an error of the server's or none that answers is one line and status 2.
    SIGINT and SIGTERM cancel the work: 130 and 143.
    """
    from proxy.cli import connect  # noqa: PLC0415 - it imports all of the proxy

    connect.run(door, work)
