"""Writes the generated parts of the documents: ``python -m docs.generate``, or ``make docs``.

- ``docs/configuration.md``: the table of all settings, from ``proxy/settings/``. A setting's
  meaning is its docstring there; without one, the text that the table has already.
- ``docs/commands.md``: all commands and options, from ``proxy/cli/``.
- ``docs/log-events.md``: all events of the log, from the calls of loggers.
- ``docs/clients.md``: the files of each client, from the recipes of ``millpond client``.
- ``README.md`` and ``docs/performance.md``: measured figures, from ``benchmarks/results.md``.

``tests/test_docs.py`` fails when a document lags behind its source.
"""

import ast
import inspect
import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from yarl import URL

from docs import commands, log_events
from proxy.cli.client_setup import ClientName
from proxy.cli.clients.instance import Instance, Registry
from proxy.cli.clients.recipes import File, recipe
from proxy.settings import Settings, units

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIGURATION: Final = ROOT / "docs" / "configuration.md"
COMMANDS: Final = ROOT / "docs" / "commands.md"
LOG_EVENTS: Final = ROOT / "docs" / "log-events.md"
CLIENTS: Final = ROOT / "docs" / "clients.md"
PERFORMANCE: Final = ROOT / "docs" / "performance.md"
SCALING: Final = ROOT / "docs" / "scaling.md"
README: Final = ROOT / "README.md"
RESULTS: Final = ROOT / "benchmarks" / "results.md"
ROLLOUTS: Final = ROOT / "benchmarks" / "fleet.md"

RIVAL: Final = "docker-registry proxy"
MISSED: Final = "**no**"

_BLOCK: Final = "<!-- generated: {} -->\n{}<!-- end -->"
_ROW: Final = re.compile(r"^\| `([^`]+)` \| [^|]* \| [^|]* \| (.*) \|$", re.MULTILINE)
_SYSTEM_DEFAULT: Final = {"storage.path": "/var/lib/millpond"}  # root's, whoever generates
_TIMES: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_BINARY: Final = ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


EXAMPLE: Final = Instance(
    URL("http://127.0.0.1:5000"), (Registry("docker.io"), Registry("ghcr.io"))
)
"""The Millpond of ``docs/clients.md``."""
_WRITTEN: Final = ("docker", "containerd", "podman", "buildkit", "k3s", "kaniko", "helm")


class Row(NamedTuple):
    """One setting: its key with dots, its type, its default as YAML, its docstring."""

    key: str
    type: str
    default: str
    meaning: str | None


class Result(NamedTuple):
    """One line of ``benchmarks/results.md``."""

    work: str
    unit: str
    ours: str
    rival: str
    theirs: str
    ratio: str
    target: str
    reached: str


def settings() -> list[Row]:
    """Return every setting in the order of ``proxy/settings/``."""
    return list(_rows(Settings, ""))


def _rows(model: type[BaseModel], above: str) -> Iterator[Row]:
    hints, meanings = get_type_hints(model, include_extras=True), docstrings(model)
    for name, field in model.model_fields.items():
        key, hint = above + (field.alias or name), hints[name]
        kinds = [kind for kind in (hint, *get_args(hint)) if _is_model(kind)]
        if kinds:
            items = {tuple: "[]", dict: ".<name>"}.get(get_origin(hint), "")
            yield from _rows(kinds[0], f"{key}{items}.")
        else:
            kind, show = _kind(_without_none(hint))
            meaning = meanings.get(name)
            yield Row(key, kind, _default(key, field, show), meaning)


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings below the fields of a model and its bases, each in one line."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, units.Section):
            (definition,) = ast.parse(inspect.getsource(base)).body
            assert isinstance(definition, ast.ClassDef)
            for field, text in pairwise(definition.body):
                match field, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(docstring))),
                    ):
                        found[name] = " ".join(docstring.split())
    return found


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _without_none(hint: Any) -> Any:
    others = [kind for kind in get_args(hint) if kind is not NoneType]
    if others == list(get_args(units.Offline)):
        return units.Offline
    return others[0] if NoneType in get_args(hint) else hint


def _default(key: str, field: FieldInfo, show: Callable[[Any], str]) -> str:
    if key in _SYSTEM_DEFAULT:
        return _SYSTEM_DEFAULT[key]
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return "" if value is None else show(value)


def _kind(hint: Any) -> tuple[str, Callable[[Any], str]]:
    """Return the name of a type, and how its defaults are written."""
    kinds: tuple[tuple[object, str, Callable[[Any], str]], ...] = (
        (units.Seconds, "duration", _duration),
        (units.Wait, "duration", _duration),
        (units.KeptFor, "policy", _policy),
        (units.Fraction, "share", str),
        (units.Disk, "size or share", _amount),
        (units.Rate, "rate", lambda value: f"{value // 10**6}MB/s"),
        (units.Moment, "time", str),
        (units.Bytes, "size", _size),
        (units.Offline, "boolean or `auto`", lambda value: str(value).lower()),
        (bool, "boolean", lambda value: str(value).lower()),
    )
    for known, name, show in kinds:
        if hint == known:
            return name, show
    if get_origin(hint) is tuple:
        return "list", _list
    if get_origin(hint) is dict:
        return "mapping", str
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in get_args(hint)), str
    plain = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    names = {int: "integer", float: "share" if _is_share(hint) else "number", Path: "path"}
    return names.get(plain, "text"), _text if plain is str else str


def _is_share(hint: Any) -> bool:
    """Return True if a number is limited from above."""
    limits = [
        limit
        for field in getattr(hint, "__metadata__", ())
        for limit in getattr(field, "metadata", ())
    ]
    return any(getattr(limit, "le", None) is not None for limit in limits)


def _list(values: tuple[object, ...]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _text(value: object) -> str:
    """Return a text in YAML, with quotes if it begins like something else."""
    return f'"{value}"' if str(value).startswith(("*", "{")) else str(value)


def _duration(seconds: float) -> str:
    if seconds == math.inf:
        return "forever"
    size, unit = next(known for known in (*_TIMES, (seconds, "")) if seconds % known[0] == 0)
    return f"{seconds / size:g}{unit}" if seconds else "0s"


def _policy(seconds: float) -> str:
    return {0.0: "follow", math.inf: "keep"}.get(seconds) or f"keep {_duration(seconds)}"


def _size(size: int) -> str:
    return next((f"{size // unit}{name}" for unit, name in _BINARY if size % unit == 0), str(size))


def _amount(amount: Any) -> str:
    return f"{amount.share:.0%}" if amount.share else _size(amount.bytes)


def table(page: str) -> str:
    """Return the table; a setting without a description keeps its text from ``page``."""
    known = dict(_ROW.findall(page))
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in settings():
        default = f"`{row.default}`" if row.default else ""
        meaning = row.meaning or known.get(row.key, "")
        lines.append(f"| `{row.key}` | {row.type} | {default} | {meaning} |")
    return "\n".join(lines)


def results() -> list[Result]:
    """Return the measurements of the last complete run of the benchmarks."""
    lines = [line for line in RESULTS.read_text().splitlines() if line.startswith("| ")]
    return [Result(*(cell.strip() for cell in line.split("|")[1:-1])) for line in lines[1:]]


def comparison() -> str:
    """Return what was measured beside docker-registry as a proxy."""
    lines = ["| | Millpond | docker-registry | ratio |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row.work} ({row.unit}) | {row.ours} | {row.theirs} | {row.ratio} |"
        for row in results()
        if row.rival == RIVAL
    ]
    return "\n".join(lines)


def client(name: str) -> str:
    """Return the files and examples of a client, as ``millpond client`` prints them."""
    found = recipe(ClientName(name), EXAMPLE)
    parts = [_shown(file) for file in found.files]
    parts += [f"```sh\n{chr(10).join(found.examples)}\n```"] if found.examples else []
    return "\n\n".join(parts)


def _shown(file: File) -> str:
    return f"`{file.path}`:\n\n```{file.format.value}\n{file.text.rstrip()}\n```"


def missed() -> str:
    """Return the measurements that do not reach their target."""
    lines = ["| | Millpond | beside | its | ratio | target |", "|---|---:|---|---:|---:|---|"]
    lines += [
        f"| {row.work} ({row.unit}) | {row.ours} | {row.rival} | {row.theirs} | {row.ratio} "
        f"| {row.target} |"
        for row in results()
        if row.reached == MISSED
    ]
    return "\n".join(lines)


def filled(page: str, name: str, text: str) -> str:
    """Return ``page`` with the generated part ``name`` replaced. Raises ``ValueError``."""
    block = re.compile(_BLOCK.format(name, ".*?"), re.DOTALL)
    if len(block.findall(page)) != 1:
        raise ValueError(f"one part generated as {name!r} expected")
    return block.sub(lambda _: _BLOCK.format(name, f"\n{text}\n\n"), page)


def documents() -> dict[Path, str]:
    """Return every document with a generated part, as it must read."""
    page, clients = CONFIGURATION.read_text(), CLIENTS.read_text()
    for name in _WRITTEN:
        clients = filled(clients, f"client {name}", client(name))
    return {
        LOG_EVENTS: filled(LOG_EVENTS.read_text(), "log events", log_events.table()),
        COMMANDS: filled(COMMANDS.read_text(), "commands", commands.reference()),
        CLIENTS: clients,
        CONFIGURATION: filled(page, "settings", table(page)),
        README: filled(README.read_text(), "comparison", comparison()),
        PERFORMANCE: filled(PERFORMANCE.read_text(), "missed targets", missed()),
        SCALING: filled(SCALING.read_text(), "rollouts", ROLLOUTS.read_text().strip()),
    }


def main() -> None:
    """Write the documents."""
    for path, text in documents().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
