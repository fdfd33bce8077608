"""Reads YAML, environment and flags into ``Settings``, and words what is wrong with them.

An error names its source (file and line, variable, or flag), the key path, what is wrong and
what would be right. A value is never repeated: it may be a secret.
"""

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from proxy.core.errors import ConfigError
from proxy.settings import Settings, Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

PREFIX: Final = "MILLPOND_"
NESTED: Final = "__"
FILE_VARIABLE: Final = "MILLPOND_CONFIG"
SYSTEM_FILE: Final = Path("/etc/millpond/config.yaml")
_KUBERNETES = re.compile(rf"{PREFIX}(SERVICE|PORT)(_.*)?")  # a Service named millpond sets these
_REFERENCE = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

_FIELD = re.compile(r'field "(\w+)"')
_FLAGS: Final = {("listen",): "--listen", ("storage", "path"): "--storage"}

KeyPath = tuple[str | int, ...]


class _Environment(BaseSettings, Settings):
    """The settings once more, as ``MILLPOND_SECTION__KEY`` variables."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=NESTED)


def load(file: Path | None, flags: dict[str, Any] | None = None) -> Settings:
    """Return the settings of a file, the environment and flags, the later over the earlier.

    ``file`` None means ``$MILLPOND_CONFIG``, else ``/etc/millpond/config.yaml`` if it is there.
    ``flags`` has the shape of the YAML document. Raises ``ConfigError`` with a line per fault.
    """
    document = _Document(file or _default_file())
    environment = _environment()
    flags = flags or {}
    merged = _laid_over(_laid_over(document.data, environment), flags)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(
                f"{_source(path, document, environment, flags)}: {text}"
                for path, text in map(_located, error.errors(include_url=False))
            )
        ) from None


class _Document:
    """One YAML file: its data, and on which line each key stands."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.data: dict[str, Any] = {}
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
        self._refuse_repeated_keys(self._root)
        if data is not None and not isinstance(data, dict):
            raise ConfigError(f"{file}: expected settings such as 'listen: 127.0.0.1:5000'")
        self.data = self._expanded(data or {}, ())

    def line(self, path: KeyPath) -> int:
        """Return the line of the deepest part of ``path`` that is written in the file."""
        node, line = self._root, 1
        for key in path:
            found = next((pair for pair in _pairs(node) if pair[0].value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line

    def _refuse_repeated_keys(self, node: yaml.Node | None) -> None:
        seen: set[str] = set()
        for key, value in _pairs(node):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{self.file}:{line}: {key.value}: this key is written twice")
            seen.add(key.value)
            self._refuse_repeated_keys(value)

    def _expanded(self, value: Any, path: KeyPath) -> Any:
        """Replace ``${NAME}`` and ``${NAME:-default}`` in every string; ``$${`` is ``${``."""
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
            where = f"{self.file}:{self.line(path)}: {_dotted(path)}"
            raise ConfigError(f"{where}: ${{{match[1]}}} is not set in the environment")
        return value


def _default_file() -> Path | None:
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named)
    try:
        return SYSTEM_FILE if SYSTEM_FILE.exists() else None
    except OSError as error:
        raise ConfigError(f"{SYSTEM_FILE}: cannot be read: {error.strerror}") from None


def _environment() -> dict[str, Any]:
    for name in os.environ:
        if not name.upper().startswith(PREFIX) or name.upper() == FILE_VARIABLE:
            continue
        if _KUBERNETES.fullmatch(name):
            continue
        key = name[len(PREFIX) :].partition(NESTED)[0].lower()
        if key not in Settings.model_fields:
            raise ConfigError(f"{name}: no such setting{_nearest(key, Settings)}")
    try:
        return EnvSettingsSource(_Environment)()
    except SettingsError as error:
        named = _FIELD.search(str(error))
        variables = _variables((named[1],)) if named is not None else []
        raise ConfigError(
            f"{', '.join(variables) or 'environment'}: not JSON; lists and mappings are JSON here"
        ) from None


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            merged[key] = _laid_over(known, value)
        else:
            merged[key] = value
    return merged


def _pairs(node: yaml.Node | None) -> "Iterator[tuple[yaml.Node, yaml.Node]]":
    if isinstance(node, yaml.MappingNode):
        yield from node.value


def _located(fault: "ErrorDetails") -> tuple[KeyPath, str]:
    """Return the key that a fault is about, and what is wrong.

    A fault of several keys together begins with the name of the one to be changed.
    """
    path, text = fault["loc"], _worded(fault)
    key, colon, rest = text.partition(": ")
    if not path and colon and key in Settings.model_fields:
        return (key,), rest
    return path, text


def _source(
    path: KeyPath, document: _Document, environment: dict[str, Any], flags: dict[str, Any]
) -> str:
    """Name the place that a faulty key came from: the strongest source that has it.

    A key that is missing comes from where the keys beside it are.
    """
    if _holds(flags, path):
        return _FLAGS.get(path, f"flag: {_dotted(path)}")  # type: ignore[arg-type]
    above = path[:-1]
    is_missing_there = _holds(environment, above) and not _holds(document.data, above)
    if _holds(environment, path) or is_missing_there:
        variables = _variables(above if is_missing_there else path)
        return f"{', '.join(variables)}: {_dotted(path)}"
    where = "settings" if document.file is None else f"{document.file}:{document.line(path)}"
    return f"{where}: {_dotted(path)}" if path else where


def _variables(path: KeyPath) -> list[str]:
    """Return the environment variables that set a key: its own, one above it, or those below."""
    names = [PREFIX + NESTED.join(map(str, path[:end])).upper() for end in range(len(path), 0, -1)]
    for name in names:
        if found := [variable for variable in os.environ if variable.upper() == name]:
            return found
    below = names[0] + NESTED if names else PREFIX
    return sorted(variable for variable in os.environ if variable.upper().startswith(below))


def _holds(data: Any, path: KeyPath) -> bool:
    for key in path:
        is_item = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if not is_item and (not isinstance(data, dict) or key not in data):
            return False
        data = data[key]
    return bool(path)


def _worded(fault: "ErrorDetails") -> str:
    match fault["type"]:
        case "extra_forbidden":
            return f"no such setting{_nearest(str(fault['loc'][-1]), _model_at(fault['loc'][:-1]))}"
        case "missing":
            return "must be set"
        case "byte_size" | "byte_size_unit":
            return "not a size; write bytes, or 500MiB, 50GiB, 2TiB"
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


def _model_at(path: KeyPath) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    for key in path:
        if model is Settings and key == "upstreams":
            continue
        field = model.model_fields.get(str(key))
        if field is None:
            model = Upstream
        else:
            kinds = getattr(field.annotation, "__args__", (field.annotation,))
            model = next(
                (k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model
            )
    return model


def _dotted(path: KeyPath) -> str:
    return ".".join(str(key) for key in path)
