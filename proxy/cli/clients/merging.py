"""Merges settings into existing files, and preserves their other keys, order and comments.

Mappings are merged key by key, missing items are added to lists, other values are replaced.
"""

import json
import re
from collections.abc import Callable
from enum import Enum
from io import StringIO
from typing import Any, Final

import tomlkit
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from tomlkit.exceptions import ParseError, TOMLKitError

_INDENT: Final = re.compile(r"^([ \t]+)\S", re.MULTILINE)
_IDENTITIES: Final = ("location", "prefix")
"""Keys by which tables of a list are the same: those of registries.conf."""


class Unreadable(Exception):
    """A file cannot be merged: where it is wrong, and why."""


class Format(Enum):
    """How required settings are merged into the text of a file."""

    JSON = "json"
    TOML = "toml"
    YAML = "yaml"
    PEM = "pem"


def merge(format_: Format, current: str, wanted: str) -> str:
    """Return ``current`` with all settings of ``wanted``; the same text if it has them already.

    Raises ``Unreadable`` if ``current`` cannot be parsed or has another shape.
    """
    if not current.strip():
        return wanted
    return _MERGES[format_](current, wanted)


def _merge_json(current: str, wanted: str) -> str:
    try:
        document = json.loads(current, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise Unreadable(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise Unreadable(str(error)) from None
    before = json.dumps(document)
    _update(document, json.loads(wanted), "")
    if json.dumps(document) == before:
        return current
    found = _INDENT.search(current)
    end = "\n" if current.endswith("\n") else ""
    return json.dumps(document, indent=found[1] if found else 2, ensure_ascii=False) + end


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; refuse a duplicate key, because one of its values would be lost."""
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return document


def _merge_toml(current: str, wanted: str) -> str:
    try:
        document = tomlkit.parse(current)
    except ParseError as error:
        raise Unreadable(str(error)) from None
    before = document.unwrap()
    try:
        _update(document, tomlkit.parse(wanted), "")
        merged = tomlkit.dumps(document)
        is_sound = tomlkit.parse(merged).unwrap() == document.unwrap()
    except TOMLKitError as error:
        raise Unreadable(f"cannot be changed: {error}") from None
    if not is_sound:
        raise Unreadable("cannot be changed without changing its meaning; edit it by hand")
    return current if document.unwrap() == before else merged


def _merge_yaml(current: str, wanted: str) -> str:
    yaml = YAML()  # keeps comments, quotes and order
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        document = yaml.load(current)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise Unreadable(f"{place}{error.problem}") from None
    except YAMLError as error:
        raise Unreadable(" ".join(str(error).split())) from None
    if document is None:  # comments only
        return current.rstrip("\n") + "\n" + wanted
    before = json.dumps(document, default=str)
    _update(document, yaml.load(wanted), "")
    if json.dumps(document, default=str) == before:
        return current
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _update(target: Any, wanted: Any, path: str) -> None:
    """Put ``wanted`` into ``target``, both mappings. Raises ``Unreadable`` for other shapes."""
    if not isinstance(target, dict):
        raise Unreadable(f"{path or 'the document'} is not a mapping")
    for key, value in wanted.items():
        place = f"{path}.{key}" if path else str(key)
        if key not in target:
            target[key] = value
        elif isinstance(value, dict):
            _update(target[key], value, place)
        elif isinstance(value, list):
            _extend(target[key], value, place)
        elif target[key] != value:
            target[key] = value


def _extend(target: Any, wanted: list[Any], path: str) -> None:
    """Add missing items in front of a list, so that they take precedence; tables at its end."""
    if not isinstance(target, list):
        raise Unreadable(f"{path} is not a list")
    for place, value in enumerate(wanted):
        if not isinstance(value, dict):
            if value not in target:
                target.insert(place, value)
        elif (same := _same(target, value)) is not None:
            _update(same, value, path)
        else:
            target.append(value)


def _same(tables: list[Any], wanted: dict[str, Any]) -> Any:
    """Return the table of a list with the same key, None without one."""
    for key in _IDENTITIES:
        for table in tables:
            if key in wanted and isinstance(table, dict) and table.get(key) == wanted[key]:
                return table
    return None


_MERGES: Final[dict[Format, Callable[[str, str], str]]] = {
    Format.JSON: _merge_json,
    Format.TOML: _merge_toml,
    Format.YAML: _merge_yaml,
    Format.PEM: lambda _, wanted: wanted,
}
