"""Writes the commands and options of ``docs/commands.md``, from the command line itself."""

from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any, Final

from typer.main import get_command

from proxy.cli import cli

_SHARED: Final = ("--json", "--config", "--storage", "--server", "--token-file", "--ca-file")
"""Options that most commands have: one table describes them, as ``ls`` has them."""


def every() -> Iterator[tuple[str, Any]]:
    """Yield each command with its full name, for example ``user add``."""
    yield from _below(get_command(cli), "")


def _below(group: Any, above: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _below(command, f"{above}{name} ")
        elif not command.hidden:
            yield above + name, command


def flags(command: Any) -> list[str]:
    """Return the options of a command, each with all its spellings."""
    return [flag for one in _options(command) for flag in (*one.opts, *one.secondary_opts)]


def _options(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "option" and not one.hidden]


def reference() -> str:
    """Return the generated part of ``docs/commands.md``."""
    panels = {panel: list(found) for panel, found in groupby(every(), _panel)}
    parts = ["\n".join(_shared_options())]
    for panel, found in panels.items():
        parts += [f"## {panel}", *("\n".join(_section(*one)) for one in found)]
    return "\n\n".join(parts)


def _panel(found: tuple[str, Any]) -> str:
    top = get_command(cli).commands[found[0].split()[0]]  # type: ignore[attr-defined]
    return str(top.rich_help_panel)


def _shared_options() -> Iterator[str]:
    yield from ("| shared option | meaning |", "|---|---|")
    yield from _shared_rows().values()


@cache
def _shared_rows() -> dict[str, str]:
    options = {one.opts[0]: one for one in _options(dict(every())["ls"])}
    return {flag: _row(options[flag]) for flag in _SHARED}


def _section(name: str, command: Any) -> Iterator[str]:
    words = ["millpond", name, *map(_argument, command.params)]
    yield from (f"### {name}", "", f"`{' '.join(word for word in words if word)}`", "")
    yield _text(command.help)
    rows = {one.opts[0]: _row(one) for one in _options(command)}
    shared = [flag for flag, row in rows.items() if _shared_rows().get(flag) == row]
    if own := [row for flag, row in rows.items() if flag not in shared]:
        yield from ("", "| option | meaning |", "|---|---|", *own)
    if shared:
        yield from ("", f"Shared options: {', '.join(f'`{flag}`' for flag in shared)}.")


def _argument(parameter: Any) -> str:
    """Return how an argument is written, nothing for an option."""
    if parameter.param_type_name == "option":
        return ""
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _row(option: Any) -> str:
    spellings = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    value = f" `{option.metavar}`" if option.metavar else ""
    return f"| {spellings}{value} | {_text(option.help)} |"


def _text(text: str | None) -> str:
    return " ".join((text or "").replace("\b", "").split()).replace("|", "\\|").replace("<", "&lt;")
