"""Functions that the commands for users and tokens share: find, read and change their file."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from proxy.cli.formatting import fail, print_error
from proxy.core.errors import ConfigError

FileOption = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="File to use instead of the configured one."),
]


def path_of(
    setting: Literal["htpasswd_file", "tokens_file"], file: Path | None, config: Path | None
) -> Path:
    """Return the file of an option, else that of the settings; without one end the command."""
    if file is not None:
        return file
    from proxy.settings import loading  # noqa: PLC0415 - pydantic, which help does without

    try:
        access = loading.load(config, {}, print_error).access
    except ConfigError as error:
        fail(str(error))
    found: Path | None = getattr(access, setting)
    if found is None:
        fail(f"access.{setting} is not set; set it, or name the file with --file FILE")
    return found


def read(path: Path) -> str:
    """Return the text of a file; on an error end the command."""
    from proxy.access import files  # noqa: PLC0415 - structlog, which help does without

    try:
        return files.read_text(path)
    except ConfigError as error:
        fail(str(error))


def change(path: Path, edit: Callable[[str], str]) -> None:
    """Replace a file's text by the result of ``edit``; on ``ConfigError`` end the command.

    A missing file is created, with access for the owner only.
    """
    from proxy.access import files  # noqa: PLC0415 - structlog, which help does without

    try:
        with files.locked(path):
            text = files.read_text(path) if path.exists() else ""
            files.write_private(path, edit(text))
    except ConfigError as error:
        fail(str(error))
