"""What the command line of Millpond has, to compare with what the documents write."""

import re
import shlex
from typing import Any

from typer.main import get_command

from docs.commands import every, flags
from proxy.cli import cli

SPAN = re.compile(r"`([^`\n]+)`")


def split(text: str) -> list[str]:
    """Return the words of a command line, without its comment and what follows a pipe."""
    return shlex.split(text.replace("\\\n", " "), comments=True)


def named(words: list[str]) -> tuple[str, Any]:
    """Return the name of the command that words begin with, and the command or group."""
    found, path = get_command(cli), []
    for word in words:
        below = getattr(found, "commands", {})
        if word not in below:
            break
        found = below[word]
        path.append(word)
    return " ".join(path), found


def faults(words: list[str]) -> list[str]:
    """Return the commands and options among the words after `millpond` that do not exist."""
    name, command = named(words)
    rest = words[len(name.split()) :]
    if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        return [rest[0]]
    known = {*flags(command), "-h", "--help"}
    options = [word.split("=")[0] for word in rest if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)]
    return [option for option in options if option not in known]


def all_flags() -> set[str]:
    """Return the options of all commands."""
    return {flag for _, command in every() for flag in flags(command)}
