"""``millpond client``: the files of container clients, printed, written or checked."""

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from proxy.cli.command import ConfigOption, JsonOption, ServerOptions, TokenFileOption
from proxy.cli.formatting import fail, print_error, print_line, printable
from proxy.core.errors import ConfigError

if TYPE_CHECKING:
    from proxy.cli.client import Client
    from proxy.cli.clients.instance import Instance
    from proxy.cli.clients.recipes import Recipe


class ClientName(StrEnum):
    """The clients that there is a recipe for."""

    DOCKER = "docker"
    CONTAINERD = "containerd"
    PODMAN = "podman"
    BUILDKIT = "buildkit"
    K3S = "k3s"
    CRIO = "crio"
    KANIKO = "kaniko"
    SKOPEO = "skopeo"
    HELM = "helm"


def client(
    name: Annotated[
        ClientName,
        typer.Argument(
            metavar="|".join(ClientName), help="The client to set up.", show_default=False
        ),
    ],
    upstream: Annotated[
        list[str] | None,
        typer.Option("--upstream", metavar="NAME", help="Only this registry; repeatable."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="URL", help="Address for clients; default: from the settings."
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the files: show the changes, then ask.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Pull with the client; report whether it used Millpond.")
    ] = False,
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="The image that --check pulls.")
    ] = None,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="Write below this directory.")
    ] = Path("/"),
    user: Annotated[
        str | None, typer.Option("--user", metavar="NAME", help="Log in to Millpond as this user.")
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help="File with the password of --user."),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file", metavar="FILE", help="PEM file of the authority of Millpond's certificate."
        ),
    ] = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print the files that make a client pull through Millpond.

    --write merges them into the client's files, preserves other settings, and copies the previous
    version of a changed file to FILE.bak-TIME. --check lets the client pull an image. Exit status
    1: the client bypassed Millpond, or could not pull.
    """
    from proxy.cli.clients import choosing  # noqa: PLC0415 - aiohttp and the settings

    try:
        login = choosing.read_login(user, password_file)
        setup = choosing.SetupOptions(address, tuple(upstream or ()), config, ca_file, login)
        instance = choosing.instance(setup)
        if write:
            _write(name, instance, root, asks=not yes)
        elif not check:
            _print(name, instance, as_json=as_json)
        if check:
            server = ServerOptions(None, None, instance.address, token_file, ca_file)
            _check(name, instance, image, server)
    except ConfigError as error:
        fail(str(error))


def _print(name: ClientName, instance: "Instance", *, as_json: bool) -> None:
    from proxy.cli.clients.recipes import recipe  # noqa: PLC0415 - yarl, which help does without

    found = recipe(name, instance)
    if as_json:
        document = {
            "client": name.value,
            "files": [
                {"path": file.path, "content": instance.hidden(file.text)} for file in found.files
            ],
            "commands": found.commands,
            "examples": found.examples,
            "notes": found.notes,
        }
        print_line(json.dumps(document))
        return
    for file in found.files:
        print_line(f"# {file.path}")
        _print_text(instance.hidden(file.text))
        print_line("")
    _print_rest(found)


def _print_rest(found: "Recipe") -> None:
    """Print the commands to run, and the notes."""
    if found.commands:
        print_line("Then run:")
        for command in found.commands:
            print_line(f"  {command}")
    for example in found.examples:
        _print_text(example)
    for note in found.notes:
        print_error(note)


def _print_text(text: str) -> None:
    for line in text.splitlines():
        typer.echo(printable(line.replace("\t", "    ")))


def _write(name: ClientName, instance: "Instance", root: Path, *, asks: bool) -> None:
    """Write what has to change. Raises ``ConfigError``."""
    from proxy.cli.clients.recipes import recipe  # noqa: PLC0415 - yarl, which help does without
    from proxy.cli.clients.writing import Tree, write  # noqa: PLC0415 - tomlkit

    tree = Tree(root)
    found = recipe(name, instance, tree.read)
    if not found.files:
        print_error(f"{name} has no files to write")
        _print_rest(found)
        return
    changes = tree.changes(found.files)
    if not changes:
        print_line("nothing to change")
        return
    for change in changes:
        _print_text(instance.hidden(change.diff()))
    if asks and not typer.confirm("Write these files?"):
        print_error("nothing was written")
        raise typer.Exit(1)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for change in changes:
        backup = write(change, stamp)
        kept = f" (before: {backup})" if backup is not None else ""
        print_line(f"written: {change.path}{kept}")
    _print_rest(found)


def _check(
    name: ClientName, instance: "Instance", image: str | None, server: ServerOptions
) -> NoReturn:
    """Pull with the client; exit with status 0 if Millpond served it. Raises ``ConfigError``."""
    from proxy.cli import connect  # noqa: PLC0415 - it imports all of the proxy
    from proxy.cli.clients import checking  # noqa: PLC0415 - the same

    pulled = image or checking.default_image(name, instance)
    words = checking.programs(name, instance, pulled)

    async def work(client: "Client") -> int:
        finding = await checking.check(client, words, pulled)
        is_used = finding.verdict is checking.Verdict.USED
        (print_line if is_used else print_error)(finding.text)
        return 0 if is_used else 1

    connect.run(server, work)
