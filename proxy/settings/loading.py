"""Reads YAML, environment and flags into ``Settings``, and formats the errors in them.

An error names its place (file and line, variable, or flag), the key, the problem, and a correct
form. It never repeats a value, which may be a secret.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from proxy.core.errors import ConfigError
from proxy.settings import Settings, Upstream
from proxy.settings.units import Section

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX: Final = "MILLPOND_"
NESTED: Final = "__"
FILE_VARIABLE: Final = "MILLPOND_CONFIG"
MAX_VALUES: Final = 100_000
"""Values in a file. Aliases of aliases can name exponentially many in a few lines."""

SYSTEM_FILE: Final = Path("/etc/millpond/config.yaml")
_KUBERNETES = re.compile(rf"{PREFIX}(SERVICE|PORT)(_.*)?")  # a Service named millpond sets these
_REFERENCE = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

_FIELD = re.compile(r'field "(\w+)"')
_FLAGS: Final[dict["KeyPath", str]] = {("listen",): "--listen", ("storage", "path"): "--storage"}

KeyPath = tuple[str | int, ...]


def load(
    file: Path | None,
    flags: dict[str, Any] | None = None,
    warn: Callable[[str], object] = lambda _: None,
) -> Settings:
    """Return the settings of a file, the environment and flags; later ones override earlier ones.

    ``file`` None means ``$MILLPOND_CONFIG``, else ``/etc/millpond/config.yaml`` if it exists.
    ``flags`` has the shape of the YAML document. ``warn`` gets a line for each use of an old name.
    Raises ``ConfigError`` with a line for each error.
    """
    document = _Document(file or _default_file())
    sources = (
        _Source(document.data, document.place),
        _Source(_environment(), _variable_place),
        _Source(flags or {}, lambda path: _FLAGS.get(path, f"flag: {_dotted(path)}")),
    )
    merged: dict[str, Any] = {}
    for source in sources:
        merged = _overridden(merged, source.data)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        faults = map(_located, error.errors(include_url=False))
        raise ConfigError(
            "\n".join(f"{_place(path, *sources)}: {text}" for path, text in faults)
        ) from None
    for source in sources:
        for path in source.old_paths:
            warn(
                f"{source.place(path)}: renamed to {_dotted(path)}; "
                "the old name works in this version"
            )
    return settings


class _Source:
    """The settings of one source, under their current names.

    ``old_paths`` has the path that is written in the source for each setting with an old name.
    """

    def __init__(self, data: dict[str, Any], place: Callable[[KeyPath], str]) -> None:
        self.old_paths: dict[KeyPath, KeyPath] = {}
        self._place = place
        self.data = self._renamed(data, ())

    def place(self, path: KeyPath) -> str:
        """Name the source and the place in it where a setting is written."""
        return self._place(self.old_paths.get(path, path))

    def _renamed(self, data: dict[str, Any], above: KeyPath) -> dict[str, Any]:
        model = _model_at(above)
        renamed: dict[str, Any] = {}
        for key, value in data.items():
            path = (*above, key)
            new: KeyPath = (key,)
            if key in model.old_names:
                new = tuple(model.old_names[key].split("."))
                if _holds(data, new):
                    raise ConfigError(
                        f"{self._place(path)}: the old name of {_dotted(new)}, which is set too; "
                        "remove it"
                    )
                self.old_paths[*above, *new] = path
            current = self._renamed(value, path) if isinstance(value, dict) else value
            renamed = _overridden(renamed, _nested(new, current))
        return renamed


class _Document:
    """One YAML file: its data, and the line of each key."""

    def __init__(self, file: Path | None) -> None:
        self.data: dict[str, Any] = {}
        self._file = file
        self._root: yaml.Node | None = None
        if file is None:
            return
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(f"{file}: cannot be read: {reason}") from None
        try:
            self._root = yaml.compose(text, yaml.SafeLoader)
            data = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ConfigError(f"{file}:{line}: not valid YAML: {error.problem}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: not valid YAML: {error}") from None
        self._count(self._root, {})
        if data is not None and not isinstance(data, dict):
            raise ConfigError(f"{file}: expected settings such as 'listen: 127.0.0.1:5000'")
        self.data = self._expanded(data or {}, ())

    def place(self, path: KeyPath) -> str:
        """Return ``config.yaml:3: storage.path``; ``settings`` stands for a missing file."""
        where = "settings" if self._file is None else f"{self._file}:{self._line(path)}"
        return f"{where}: {_dotted(path)}" if path else where

    def _line(self, path: KeyPath) -> int:
        """Return the line of the deepest part of ``path`` that is in the file."""
        node, line = self._root, 1
        for key in path:
            found = next((pair for pair in _pairs(node) if pair[0].value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line

    def _count(self, node: yaml.Node | None, counts: dict[int, int]) -> int:
        """Return the number of values in a node; what an alias names counts each time.

        ``counts`` has those of visited nodes, 0 while they are visited. Raises ``ConfigError`` for
        a repeated key, for an alias to a node around it, and for too many values.
        """
        count = counts.get(id(node))
        if count is None:
            counts[id(node)] = 0
            self._refuse_repeated_keys(node)
            count = 1 + sum(self._count(value, counts) for _, value in _pairs(node))
            counts[id(node)] = count
        if node is not None and not 0 < count <= MAX_VALUES:
            fault = f"more than {MAX_VALUES:,} values" if count else "an alias to a value around it"
            raise ConfigError(f"{self._file}:{node.start_mark.line + 1}: {fault}")
        return count

    def _refuse_repeated_keys(self, node: yaml.Node | None) -> None:
        seen: set[str] = set()
        for key, _ in _pairs(node):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{self._file}:{line}: {key.value}: this key is written twice")
            seen.add(key.value)

    def _expanded(self, value: Any, path: KeyPath) -> Any:
        """Replace ``${NAME}`` and ``${NAME:-default}`` in every string; ``$${`` means ``${``."""
        match value:
            case dict():
                return {key: self._expanded(entry, (*path, key)) for key, entry in value.items()}
            case list():
                return [self._expanded(entry, path) for entry in value]
            case str():
                expanded = _REFERENCE.sub(lambda match: self._variable(match, path), value)
                return expanded.replace("$${", "${")
            case _:
                return value

    def _variable(self, match: re.Match[str], path: KeyPath) -> str:
        value = os.environ.get(match[1], match[2])
        if value is None:
            raise ConfigError(f"{self.place(path)}: ${{{match[1]}}} is not set in the environment")
        return value


def _pairs(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Yield keys and values of a mapping; the key of a list's item is its number."""
    match node:
        case yaml.MappingNode():
            yield from node.value
        case yaml.SequenceNode():
            for number, item in enumerate(node.value):
                yield yaml.ScalarNode("", str(number), item.start_mark), item


def _default_file() -> Path | None:
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named)
    try:
        return SYSTEM_FILE if SYSTEM_FILE.exists() else None
    except OSError as error:
        raise ConfigError(f"{SYSTEM_FILE}: cannot be read: {error.strerror}") from None


class _Environment(BaseSettings, Settings):
    """The settings as ``MILLPOND_SECTION__KEY`` variables, and those that another section had."""

    trusted_proxies: tuple[str, ...] = ()

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=NESTED)


def _environment() -> dict[str, Any]:
    for name in os.environ:
        if not name.upper().startswith(PREFIX) or name.upper() == FILE_VARIABLE:
            continue
        if _KUBERNETES.fullmatch(name):
            continue
        key = name[len(PREFIX) :].partition(NESTED)[0].lower()
        if key not in _Environment.model_fields:
            raise ConfigError(f"{name}: no such setting{_nearest(key, Settings)}")
    try:
        return EnvSettingsSource(_Environment)()
    except SettingsError as error:
        named = _FIELD.search(str(error))
        variables = _variables((named[1],)) if named is not None else []
        raise ConfigError(
            f"{', '.join(variables) or 'environment'}: not JSON; lists and mappings are JSON here"
        ) from None


def _variable_place(path: KeyPath) -> str:
    return f"{', '.join(_variables(path))}: {_dotted(path)}"


def _variables(path: KeyPath) -> list[str]:
    """Return the environment variables that set a key: its own, one above it, or those below."""
    names = [PREFIX + NESTED.join(map(str, path[:end])).upper() for end in range(len(path), 0, -1)]
    for name in names:
        if found := [variable for variable in os.environ if variable.upper() == name]:
            return found
    below = names[0] + NESTED if names else PREFIX
    return sorted(variable for variable in os.environ if variable.upper().startswith(below))


def _overridden(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            merged[key] = _overridden(known, value)
        else:
            merged[key] = value
    return merged


def _nested(path: KeyPath, value: Any) -> dict[Any, Any]:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def _place(path: KeyPath, document: _Source, environment: _Source, flags: _Source) -> str:
    """Name the place of a wrong key: in the last source that has it.

    A missing key belongs to the source of the keys beside it.
    """
    if _holds(flags.data, path):
        return flags.place(path)
    if _holds(environment.data, path):
        return environment.place(path)
    above = path[:-1]
    if _holds(environment.data, above) and not _holds(document.data, above):
        return f"{', '.join(_variables(above))}: {_dotted(path)}"
    return document.place(path)


def _holds(data: Any, path: KeyPath) -> bool:
    for key in path:
        is_item = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if not is_item and (not isinstance(data, dict) or key not in data):
            return False
        data = data[key]
    return bool(path)


def _located(fault: "ErrorDetails") -> tuple[KeyPath, str]:
    """Return the key of an error, and what is wrong.

    An error of several keys together begins with the name of the one to be changed.
    """
    path, text = fault["loc"], _worded(fault)
    key, colon, rest = text.partition(": ")
    if not path and colon and key in Settings.model_fields:
        return (key,), rest
    return path, text


def _worded(fault: "ErrorDetails") -> str:
    match fault["type"]:
        case "extra_forbidden":
            return f"no such setting{_nearest(str(fault['loc'][-1]), _model_at(fault['loc'][:-1]))}"
        case "missing":
            return "must be set"
        case "model_type" | "dict_type":
            return "expected a mapping of settings"
        case "bool_parsing" | "bool_type":
            return "expected true or false"
        case _:
            message = fault["msg"].removeprefix("Value error, ")
            return message[:1].lower() + message[1:]


def _nearest(key: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _model_at(path: KeyPath) -> type[Section]:
    model: type[Section] = Settings
    for key in path:
        if isinstance(key, int) or (model is Settings and key == "upstreams"):
            continue
        field = model.model_fields.get(str(key))
        if field is None:
            model = Upstream
        else:
            kinds = getattr(field.annotation, "__args__", (field.annotation,))
            model = next(
                (k for k in kinds if isinstance(k, type) and issubclass(k, Section)), model
            )
    return model


def _dotted(path: KeyPath) -> str:
    return ".".join(str(key) for key in path)
