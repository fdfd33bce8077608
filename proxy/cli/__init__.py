"""The ``millpond`` command. Every fault of a user's is one clear line and exit status 2.

A file for each group of commands; ``reach`` finds the server that they talk to, ``client`` asks it.
"""

from typing import Annotated

import typer

from proxy import VERSION
from proxy.cli import images, pins, serving, space, verifying

cli = typer.Typer(
    name="millpond",
    help="A pull-through caching proxy registry for container images.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    cli()


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
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

cli.command(rich_help_panel=_SERVER)(serving.serve)
cli.command(rich_help_panel=_SERVER)(serving.check)
cli.command(rich_help_panel=_CACHE)(images.ls)
cli.command(rich_help_panel=_CACHE)(pins.pin)
cli.command(rich_help_panel=_CACHE)(pins.unpin)
cli.command(rich_help_panel=_CACHE, name="pins")(pins.list_pins)
cli.command(rich_help_panel=_CACHE)(space.in_use)
cli.command(rich_help_panel=_CACHE)(space.evict)
cli.command(rich_help_panel=_CACHE)(verifying.verify)
