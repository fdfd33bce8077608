"""``millpond user``: the users of the htpasswd file. A server reads it again when it changes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from proxy.cli.access_files import FileOption, change, path_of, read
from proxy.cli.command import ConfigOption
from proxy.cli.formatting import fail, print_error, print_line
from proxy.core.errors import ConfigError

users = typer.Typer(help="Manage users and their passwords.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(metavar="USER")]


@users.command()
def add(user: UserArgument, file: FileOption = None, config: ConfigOption = None) -> None:
    """Add a user.

    The password is read from the terminal, or as one line from standard input.
    """
    path = path_of("htpasswd_file", file, config)
    _set_password(path, user, is_known=False)
    print_line(f"{user}: added")


@users.command()
def passwd(user: UserArgument, file: FileOption = None, config: ConfigOption = None) -> None:
    """Change a user's password; logins with the old one stop working at once.

    The password is read from the terminal, or as one line from standard input.
    """
    path = path_of("htpasswd_file", file, config)
    _set_password(path, user, is_known=True)
    print_line(f"{user}: password changed")


@users.command()
def rm(user: UserArgument, file: FileOption = None, config: ConfigOption = None) -> None:
    """Remove a user, whose logins stop working at once."""
    from proxy.access import htpasswd  # noqa: PLC0415 - bcrypt, which help does without

    path = path_of("htpasswd_file", file, config)

    def edit(text: str) -> str:
        htpasswd.check_user(text, path, user, is_known=True)
        return htpasswd.with_user(text, user, None)

    change(path, edit)
    print_line(f"{user}: removed")


@users.command()
def ls(file: FileOption = None, config: ConfigOption = None) -> None:
    """List the users."""
    from proxy.access import htpasswd  # noqa: PLC0415 - bcrypt, which help does without

    path = path_of("htpasswd_file", file, config)
    try:
        found = htpasswd.parse(read(path), path)
    except ConfigError as error:
        fail(str(error))
    if not found.hashes:
        print_error("there are no users")
    for user in sorted(found.hashes):
        print_line(user)


def _set_password(path: Path, user: str, *, is_known: bool) -> None:
    from proxy.access import htpasswd  # noqa: PLC0415 - bcrypt, which help does without

    try:
        text = read(path) if path.exists() else ""
        htpasswd.check_user(text, path, user, is_known=is_known)  # before a person types
        stored = htpasswd.hash_password(_password(user))
    except ConfigError as error:
        fail(str(error))

    def edit(text: str) -> str:
        htpasswd.check_user(text, path, user, is_known=is_known)
        return htpasswd.with_user(text, user, stored)

    change(path, edit)


def _password(user: str) -> str:
    """Return the password that was typed twice, or one line of standard input."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"Password of {user}", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")
