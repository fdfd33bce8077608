"""``millpond doctor``: checks what Millpond needs, and suggests a remedy for each failure."""

import asyncio
import json
from dataclasses import asdict
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.cli.command import ConfigOption, JsonOption, StorageOption, overrides
from proxy.cli.formatting import fail, print_error, print_line
from proxy.core.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from proxy.app.doctor.results import Result


def doctor(
    upstream: Annotated[
        str | None, typer.Argument(metavar="[UPSTREAM]", help="Check only this registry.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", help="A small image to test with, such as nginx."),
    ] = None,
    config: ConfigOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the server, as in serve.")
    ] = None,
    storage: StorageOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no registry, as in serve.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything that Millpond needs, and suggest a remedy for each failure.

    Checks registries (name, port, certificate, clock, login, rate limit, redirects), this machine,
    Redis and the bucket, and the clients of this machine. Uses the settings of serve; the server
    may be running or not. Exit status 1: a check failed; 2: the settings are wrong.
    """
    flags = overrides(listen, storage, offline=offline)
    try:
        results = _examined(config, flags, upstream, image)
    except ConfigError as error:
        fail(str(error))
    except RegistryError as error:
        fail(error.message)
    is_well = not any(result.status == "failed" for result in results)
    if as_json:
        typer.echo(json.dumps({"ok": is_well, "checks": [asdict(one) for one in results]}))
    else:
        _print(results)
    raise typer.Exit(0 if is_well else 1)


def _examined(
    config: Path | None, flags: dict[str, Any], upstream: str | None, image: str | None
) -> "list[Result]":
    """Return the results of all checks. Raises ``ConfigError`` and ``RegistryError``."""
    from proxy.app.doctor import examined  # noqa: PLC0415 - all of the proxy
    from proxy.core.routing import Router  # noqa: PLC0415
    from proxy.runtime import logs  # noqa: PLC0415
    from proxy.settings import loading  # noqa: PLC0415 - pydantic, which help does without

    settings = loading.load(config, flags, print_error)
    if upstream is not None and upstream not in settings.upstreams:
        names = ", ".join(settings.upstreams)
        raise ConfigError(f"{upstream}: not a configured upstream; there are {names}")
    parsed = None if image is None else Router(settings).parse_image(image)
    logs.configure("error", "console", StringIO())  # the report says the same
    return asyncio.run(examined(settings, upstream, parsed))


def _print(results: "list[Result]") -> None:
    width = max(len(result.check) for result in results)
    for subject, group in groupby(results, lambda result: result.subject):
        print_line(subject)
        for result in group:
            print_line(f"  {result.status:8} {result.check:{width}}  {result.detail}")
            if result.remedy:
                print_line(f"  {'':8} {'':{width}}  to do: {result.remedy}")
