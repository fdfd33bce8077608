"""``millpond token``: the access tokens of the tokens file. A server reads it when it changes."""

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.access_files import FileOption, change, path_of, read
from proxy.cli.command import ConfigOption, JsonOption, parsed_option
from proxy.cli.formatting import fail, moment, print_error, print_line, print_table
from proxy.core.errors import ConfigError
from proxy.core.units import parse_seconds

if TYPE_CHECKING:
    from proxy.access.api_tokens import APIToken

tokens = typer.Typer(help="Manage access tokens, for machines.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]


@tokens.command()
def new(
    name: NameArgument,
    group: Annotated[
        list[str] | None, typer.Option("--group", metavar="GROUP", help="A group; repeatable.")
    ] = None,
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="Lifetime of the token, as 90d or 12h.")
    ] = "forever",
    file: FileOption = None,
    config: ConfigOption = None,
) -> None:
    """Create a token and print it. It cannot be shown again.

    Clients send it as their password, with any user name. In rules it is the user NAME.
    """
    from proxy.access import api_tokens  # noqa: PLC0415 - YAML, which help does without

    lifetime = parsed_option("--expires", expires, parse_seconds)
    path = path_of("tokens_file", file, config)
    token = api_tokens.new_token()
    end = None if math.isinf(lifetime) else time.time() + lifetime
    made = api_tokens.APIToken(name, api_tokens.hash_token(token), tuple(group or ()), end)

    def edit(text: str) -> str:
        found = api_tokens.parse(text, path).by_name
        if name in found:
            raise ConfigError(f"there is a token {name!r} already; choose another name")
        text = api_tokens.render((*found.values(), made))
        api_tokens.parse(text, path)  # complains of the name and the groups
        return text

    change(path, edit)
    typer.echo(token)


@tokens.command()
def ls(as_json: JsonOption = False, file: FileOption = None, config: ConfigOption = None) -> None:
    """List the tokens: names, groups and expiry, but not the tokens themselves."""
    path = path_of("tokens_file", file, config)
    found = _tokens(path)
    if as_json:
        print_line(json.dumps({"tokens": [_document(token) for token in found]}))
        return
    if not found:
        print_error("there are no tokens")
        return
    rows = [(token.name, ", ".join(token.groups), _expiry(token)) for token in found]
    print_table(("NAME", "GROUPS", "EXPIRES"), rows)


@tokens.command()
def revoke(name: NameArgument, file: FileOption = None, config: ConfigOption = None) -> None:
    """Remove a token, which stops working at once."""
    from proxy.access import api_tokens  # noqa: PLC0415 - YAML, which help does without

    path = path_of("tokens_file", file, config)

    def edit(text: str) -> str:
        found = dict(api_tokens.parse(text, path).by_name)
        if found.pop(name, None) is None:
            raise ConfigError(f"there is no token {name!r}; millpond token ls lists them")
        return api_tokens.render(found.values())

    change(path, edit)
    print_line(f"{name}: revoked")


def _tokens(path: Path) -> "list[APIToken]":
    from proxy.access import api_tokens  # noqa: PLC0415 - YAML, which help does without

    try:
        return list(api_tokens.parse(read(path), path).by_name.values())
    except ConfigError as error:
        fail(str(error))


def _document(token: "APIToken") -> dict[str, object]:
    return {"name": token.name, "groups": list(token.groups), "expires": token.expires}


def _expiry(token: "APIToken") -> str:
    if token.expires is None:
        return "never"
    return f"{moment(token.expires)}{' (expired)' if token.has_expired else ''}"
