"""``millpond serve`` and ``millpond check``: run the proxy, and validate its settings."""

import asyncio
import gc
import json
import sys
from dataclasses import asdict
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.cli.command import ConfigOption, JsonOption, StorageOption, overrides
from proxy.cli.formatting import fail, print_error, print_table
from proxy.core.errors import ConfigError

if TYPE_CHECKING:
    from proxy.app.online import Login
    from proxy.settings import Settings


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
    gc.disable()  # what is imported stays: to look for garbage in it takes 0.1 s
    _import_structlog()
    from proxy.cli import serving  # noqa: PLC0415 - it imports all of the proxy

    gc.freeze()
    gc.enable()
    try:
        serving.run(config, overrides(listen, storage, offline=offline))
    except ConfigError as error:
        fail(str(error))


def _import_structlog() -> None:
    """Import structlog without rich, which it imports for tracebacks in colours.

    Nothing here uses these, and rich takes 0.1 s of each start.
    """
    known = sys.modules.get("rich")
    sys.modules["rich"] = None  # type: ignore[assignment]  # its import fails
    try:
        import structlog  # noqa: F401, PLC0415
    finally:
        del sys.modules["rich"]
        if known is not None:
            sys.modules["rich"] = known


def check(
    config: ConfigOption = None,
    online: Annotated[
        bool, typer.Option("--online", help="Log in at every registry and bucket, and report.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Validate the settings as serve does, and report all errors.

    Reads certificates, keys, passwords, tokens and pins. Does not listen, and writes nothing. Warns
    of access rules that no client can satisfy, and of keys that export and import would refuse.
    Exit status 2: a setting is wrong. Exit status 1: a login of --online fails.
    """
    from proxy.app import validation  # noqa: PLC0415 - all of the proxy, which help does without
    from proxy.settings import loading  # noqa: PLC0415 - pydantic, which help does without

    problems: list[str] = []
    logins: list[Login] = []
    text = ""
    try:
        settings = loading.load(config, warn=print_error)
        validation.validate(settings)
        validation.validate_writable(settings)
        for warning in validation.warnings(settings):
            print_error(f"warning: {warning}")
        text = f"ok: {len(settings.upstreams)} upstreams, listening on {settings.listen}"
        if settings.processes > 1:
            text += f", with {settings.processes} workers and a main process"
        logins = _log_in(settings) if online else []
    except ConfigError as error:
        problems = str(error).splitlines()
    status = 2 if problems else int(any(login.result == "failed" for login in logins))
    if as_json:
        document: dict[str, Any] = {"ok": status == 0, "problems": problems}
        if online:
            document["upstreams"] = [asdict(login) for login in logins]
        typer.echo(json.dumps(document))
    elif problems:
        fail("\n".join(problems))
    else:
        typer.echo(text)
        _print(logins)
    raise typer.Exit(status)


def _log_in(settings: "Settings") -> "list[Login]":
    """Return the outcome of a login at each registry. Raises ``ConfigError``."""
    from proxy.app.online import log_in_everywhere  # noqa: PLC0415 - all of the proxy
    from proxy.runtime import logs  # noqa: PLC0415 - all of the proxy

    logs.configure("error", "console", StringIO())  # the report says the same
    return asyncio.run(log_in_everywhere(settings))


def _print(logins: "list[Login]") -> None:
    if logins:
        rows = [(each.upstream, each.credentials, each.result, each.detail) for each in logins]
        print_table(("UPSTREAM", "CREDENTIALS", "RESULT", "DETAIL"), rows)
