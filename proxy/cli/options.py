"""The flags that several commands share, and what their texts mean."""

from pathlib import Path
from typing import Annotated

import typer

from proxy.cli.formatting import refuse

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
    Path | None, typer.Option("--storage", metavar="DIR", help="Where the cache lives.")
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="A server elsewhere, instead of the cache's own socket."
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Holds the admin token of --server."),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option("--ca-file", metavar="FILE", help="Trust this authority's certificate too."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def bytes_of(flag: str, text: str) -> int:
    """Return the bytes that ``text`` names, as ``10GiB``; else refuse, naming the flag."""
    from proxy.core.units import parse_size  # noqa: PLC0415

    try:
        return parse_size(text)
    except ValueError as error:
        refuse(f"{flag}: {error}")


def rate_of(flag: str, text: str) -> int:
    """Return the bytes a second of ``50MB/s``; 0 is no limit; else refuse."""
    from proxy.core.units import parse_size  # noqa: PLC0415

    try:
        return parse_size(text)
    except ValueError:
        refuse(f"{flag}: not a rate; write 50MB/s, 20MiB/s, or 0 for no limit")


def seconds_of(flag: str, text: str) -> float:
    """Return the seconds that ``text`` names, as ``1h``; else refuse, naming the flag."""
    from proxy.core.units import parse_seconds  # noqa: PLC0415

    try:
        return parse_seconds(text)
    except ValueError as error:
        refuse(f"{flag}: {error}")
