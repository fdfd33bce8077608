"""``millpond serve`` and ``millpond check``: run the proxy, and look at its settings."""

import json
from typing import Annotated, Any

import typer

from proxy.cli.command import ConfigOption, JsonOption, StorageOption
from proxy.cli.formatting import fail, print_error
from proxy.core.errors import ConfigError


def serve(
    config: ConfigOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address and port to listen on.")
    ] = None,
    storage: StorageOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no registry; serve complete images.")
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
        fail(str(error))


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Validate the settings as serve does, and report all errors.

    Reads certificates, keys, passwords, tokens and pins. Does not listen, and writes nothing. Warns
    of access rules that no client can meet.
    """
    from proxy.access.review import warnings  # noqa: PLC0415 - settings, which help does without
    from proxy.app.validation import validate, validate_writable  # noqa: PLC0415 - all of the proxy
    from proxy.settings import loading  # noqa: PLC0415 - pydantic, which help does without

    problems: list[str] = []
    text = ""
    try:
        settings = loading.load(config, warn=print_error)
        validate(settings)
        validate_writable(settings)
        for warning in warnings(settings):
            print_error(f"warning: {warning}")
        text = f"ok: {len(settings.upstreams)} upstreams, listening on {settings.listen}"
    except ConfigError as error:
        problems = str(error).splitlines()
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "problems": problems}))
        raise typer.Exit(2 if problems else 0)
    if problems:
        fail("\n".join(problems))
    typer.echo(text)
