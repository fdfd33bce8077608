"""The ``millpond`` command. A user's error is one clear line and exit status 2.

There is a module for each group of commands. ``command`` has their common options, ``connect``
finds the server, and ``client`` sends it requests. Modules that only one command needs are
imported when it runs, so help, version and completion are as fast as Typer itself.
"""

import signal
import sys
from typing import Annotated, Any, Final

import typer

from proxy.cli import (
    access,
    bundling,
    client_setup,
    doctor,
    events,
    eviction,
    explaining,
    fleet,
    history,
    images,
    pins,
    pulling,
    server,
    statistics,
    tokens,
    unbundling,
    users,
    verifying,
    warming,
)
from proxy.cli.formatting import print_error

USAGE_ERROR: Final[type[BaseException]] = typer.BadParameter.__mro__[1]
"""Typer's class of usage errors, which it exports only as the base of this one."""

cli = typer.Typer(
    name="millpond",
    help="A pull-through caching proxy registry for container images.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    try:
        status = cli(prog_name="millpond", standalone_mode=False)
    except USAGE_ERROR as error:
        sys.exit(_print_usage_error(error))
    except typer.Abort:
        sys.exit(128 + signal.SIGINT)
    sys.exit(status)


def _print_usage_error(error: Any) -> int:
    """Print in one line what is wrong with the arguments; return the exit status.

    Without arguments Typer has already printed the help, and the message is empty.
    """
    message = " ".join(error.format_message().split()).rstrip(".")
    if message:
        path = error.ctx.command_path if error.ctx is not None else "millpond"
        print_error(f"{message}; see {path} --help")
    return 2


def _print_version(is_wanted: bool) -> None:  # noqa: FBT001 - Typer's interface
    if is_wanted:
        from proxy import VERSION  # noqa: PLC0415 - reading it is as slow as all the rest

        typer.echo(f"millpond {VERSION}")
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Handle the options in front of the command."""


_SERVER = "The server"
_ACCESS = "Who may pull"
_BUNDLES = "Bundles, to carry images to another cache"
_CACHE = "The cache (the server may be running or not)"

cli.command(rich_help_panel=_SERVER)(server.serve)
cli.command(rich_help_panel=_SERVER)(server.check)
cli.command(rich_help_panel=_SERVER)(doctor.doctor)
cli.command(rich_help_panel=_SERVER)(fleet.fleet)
cli.command(rich_help_panel=_SERVER)(statistics.stats)
cli.command(rich_help_panel=_SERVER)(statistics.top)
cli.command(rich_help_panel=_SERVER)(events.events)
cli.command(rich_help_panel=_SERVER)(client_setup.client)
cli.command(rich_help_panel=_CACHE)(images.ls)
cli.command(rich_help_panel=_CACHE)(pulling.pull)
cli.command(rich_help_panel=_CACHE)(warming.warm)
cli.command(rich_help_panel=_CACHE)(pulling.refresh)
cli.command(rich_help_panel=_CACHE)(explaining.explain)
cli.command(rich_help_panel=_CACHE)(history.history)
cli.command(rich_help_panel=_CACHE)(history.lock)
cli.command(rich_help_panel=_CACHE)(images.drop)
cli.command(rich_help_panel=_CACHE)(pins.pin)
cli.command(rich_help_panel=_CACHE)(pins.unpin)
cli.command(rich_help_panel=_CACHE, name="pins")(pins.list_pins)
cli.command(rich_help_panel=_CACHE)(eviction.in_use)
cli.command(rich_help_panel=_CACHE)(eviction.evict)
cli.command(rich_help_panel=_CACHE)(verifying.verify)
cli.command(rich_help_panel=_BUNDLES)(bundling.inventory)
cli.command(rich_help_panel=_BUNDLES)(bundling.export)
cli.command(rich_help_panel=_BUNDLES, name="import")(unbundling.import_bundle)
cli.command(rich_help_panel=_BUNDLES)(unbundling.imports)
cli.add_typer(unbundling.keys, rich_help_panel=_BUNDLES, name="key")
cli.add_typer(access.access, rich_help_panel=_ACCESS, name="access")
cli.add_typer(users.users, rich_help_panel=_ACCESS, name="user")
cli.add_typer(tokens.tokens, rich_help_panel=_ACCESS, name="token")
