"""``millpond serve`` and ``millpond check``: run the proxy, and look at its settings."""

import json
from typing import Annotated, Any

import typer

from proxy.cli.formatting import refuse
from proxy.cli.options import ConfigOption, JsonOption, StorageOption
from proxy.core.errors import ConfigError


def serve(
    config: ConfigOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to listen.")
    ] = None,
    storage: StorageOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Serve what is held; ask no upstream.")
    ] = False,
) -> None:
    """Run the proxy until SIGTERM or SIGINT."""
    from proxy.cli import serving  # noqa: PLC0415 - it imports all of the proxy

    flags: dict[str, Any] = {}
    if listen is not None:
        flags["listen"] = listen
    if storage is not None:
        flags["storage"] = {"path": str(storage)}
    if offline:
        flags["offline"] = True
    try:
        serving.run(config, flags)
    except ConfigError as error:
        refuse(str(error))


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Validate the settings as serve does, and name what is wrong with them.

    Certificates, keys, passwords, tokens and pins are read; nothing is listened on or written.
    """
    from proxy.app.validation import validate, validate_writable  # noqa: PLC0415 - it imports all of the proxy
    from proxy.settings import loading  # noqa: PLC0415 - pydantic, which no help needs

    problems: list[str] = []
    text = ""
    try:
        settings = loading.load(config)
        validate(settings)
        validate_writable(settings)
        text = f"ok: {len(settings.upstreams)} upstreams, listening on {settings.listen}"
    except ConfigError as error:
        problems = str(error).splitlines()
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "problems": problems}))
        raise typer.Exit(2 if problems else 0)
    if problems:
        refuse("\n".join(problems))
    typer.echo(text)
