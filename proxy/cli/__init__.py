"""The ``millpond`` command. Every fault of a user's is one clear line and exit status 2.

A file for each group of commands; ``reach`` finds the server that they talk to, ``client`` asks it.
What a command needs beyond the parsing of its arguments is imported when it runs: help, versions
and completions come at once.
"""

import signal
import sys
from typing import Annotated, Any, Final

import typer

from proxy.cli import dropping, images, pins, pulling, server, space, verifying
from proxy.cli.formatting import complain

USAGE_ERROR: Final[type[BaseException]] = typer.BadParameter.__mro__[1]
"""Typer's class of all wrong usage, which it exports only as the base of this one."""

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
        sys.exit(_complain_of_usage(error))
    except typer.Abort:
        sys.exit(128 + signal.SIGINT)
    sys.exit(status)


def _complain_of_usage(error: Any) -> int:
    """Say in one line what is wrong with the arguments; return the exit status.

    Without any arguments Typer has printed the help already, and there is no message.
    """
    message = " ".join(error.format_message().split()).rstrip(".")
    if message:
        path = error.ctx.command_path if error.ctx is not None else "millpond"
        complain(f"{message}; see {path} --help")
    return 2


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
        from proxy import VERSION  # noqa: PLC0415 - reading it takes as long as all the rest

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
    """Act on what stands before the command."""


_SERVER = "The server"
_CACHE = "The cache (also while the server does not run)"

cli.command(rich_help_panel=_SERVER)(server.serve)
cli.command(rich_help_panel=_SERVER)(server.check)
cli.command(rich_help_panel=_CACHE)(images.ls)
cli.command(rich_help_panel=_CACHE)(pulling.pull)
cli.command(rich_help_panel=_CACHE)(pulling.refresh)
cli.command(rich_help_panel=_CACHE)(dropping.drop)
cli.command(rich_help_panel=_CACHE)(pins.pin)
cli.command(rich_help_panel=_CACHE)(pins.unpin)
cli.command(rich_help_panel=_CACHE, name="pins")(pins.list_pins)
cli.command(rich_help_panel=_CACHE)(space.in_use)
cli.command(rich_help_panel=_CACHE)(space.evict)
cli.command(rich_help_panel=_CACHE)(verifying.verify)
