"""The documentation of settings: config/*.yaml and the table in docs/configuration.md."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.generate import docstrings
from proxy.settings import Settings, loading

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "config" / "default.yaml"
EXAMPLES = sorted((ROOT / "config").glob("example-*.yaml"))
NAME = "<name>"
NAMED = [("upstreams",), ("hooks",)]
"""Mappings from names to sections."""

LIST = "[]"
"""Ends the name of a list of sections."""

# `#key: value` is a setting that has no default, `#- key: value` begins an item of a list; `# text`
# is prose.
COMMENTED_OUT = re.compile(r"^( *)#(?=(?:- )?[a-z_ ]+: |[a-z_]+:$)(?! )", re.MULTILINE)
ROW = re.compile(r"^\| `([a-z_.<>\[\]]+)` \| [^|]* \| (?:`([^`]*)`)? \| (.*) \|$", re.MULTILINE)

KeyPath = tuple[str, ...]


@pytest.fixture(autouse=True)
def _as_root_without_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("MILLPOND_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def settings_of(model: type[BaseModel], above: KeyPath = ()) -> Iterator[KeyPath]:
    for field_name, field in model.model_fields.items():
        name = field.alias or field_name
        here = (*above, name)
        kinds = [field.annotation, *get_args(field.annotation)]
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if below and get_origin(field.annotation) is dict:
            yield from settings_of(below[0], (*here, NAME))
        elif below:
            item = LIST if get_origin(field.annotation) is tuple else ""
            yield from settings_of(below[0], (*above, name + item))
        else:
            yield here


ALL = set(settings_of(Settings))


def keys_of(data: dict[str, Any], above: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in data.items():
        here = (*above, NAME if above in NAMED else key)
        listed = (*above, f"{key}{LIST}")
        if isinstance(value, dict) and here not in ALL:
            yield from keys_of(value, here)
        elif isinstance(value, list) and any(path[: len(listed)] == listed for path in ALL):
            for item in value:
                yield from keys_of(item, listed)
        elif value is not None or here in ALL:
            yield here


def nested(path: KeyPath, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


def at(settings: Settings, path: KeyPath) -> Any:
    value: Any = settings
    for key in path:
        if value is None:  # the default of a section that is left out
            return None
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return value


def at_default(path: KeyPath) -> Any:
    """Return a setting's default, None for what has none."""
    if path[:1] == ("tls",) or path[-1] == "url":
        return None
    if is_in_optional_section(path):
        default = field_at(path).get_default(call_default_factory=True)
        return None if default is PydanticUndefined else default
    settings = Settings.model_validate({"upstreams": {"x": {"url": "https://x.example"}}})
    return at(settings, tuple("x" if key == NAME else key for key in path))


def is_in_optional_section(path: KeyPath) -> bool:
    """The setting belongs to a list of sections, or to a section without a default."""
    return any(
        key.endswith(LIST) or key in ("client_certificates", "bucket", "hooks") for key in path
    )


def description(path: KeyPath) -> str:
    """Return what the model says about a setting."""
    model, name, _ = at_path(path)
    return docstrings(model).get(name, "")


def field_at(path: KeyPath) -> FieldInfo:
    return at_path(path)[2]


def at_path(path: KeyPath) -> tuple[type[BaseModel], str, FieldInfo]:
    """Return the model of a setting, the field's name in it, and the field."""
    model: Any = Settings
    for key in path:
        if key != NAME:
            name = key.removesuffix(LIST)
            fields = model.model_fields
            aliased = {one.alias: key for key, one in fields.items() if one.alias}
            name = aliased.get(name, name)
            field: FieldInfo = fields[name]
            kinds = [field.annotation, *get_args(field.annotation)]
            below = [
                kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)
            ]
            owner, model = model, below[0] if below else model
    return owner, name, field


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        known = both.get(key)
        deeper = isinstance(known, dict) and isinstance(value, dict)
        both[key] = merged(known, value) if deeper else value
    return both


def documented() -> dict[KeyPath, tuple[str | None, str]]:
    """The default and the meaning of each setting."""
    rows = ROW.findall((ROOT / "docs" / "configuration.md").read_text())
    return {tuple(key.split(".")): (default or None, meaning) for key, default, meaning in rows}


def test_the_settings_are_found_in_the_models() -> None:
    assert ("listen",) in ALL
    assert ("tls", "key_file") in ALL
    assert ("upstreams", NAME, "tls", "verify") in ALL
    assert ("upstreams", NAME, "freshness", "tag_ttl") in ALL
    assert len(ALL) > 30


def test_every_setting_has_a_description() -> None:
    assert not [".".join(path) for path in ALL if len(description(path).split()) < 4]


def test_the_default_file_equals_the_built_in_defaults() -> None:
    assert loading.load(DEFAULT).model_dump() == Settings().model_dump()


def test_the_default_file_writes_every_default_out() -> None:
    written = set(keys_of(yaml.safe_load(DEFAULT.read_text())))
    optional = {path for path in ALL if at_default(path) is None or is_in_optional_section(path)}
    assert ALL - written - optional == set()


def test_the_default_file_has_every_setting_in_its_place() -> None:
    text = COMMENTED_OUT.sub(r"\1", DEFAULT.read_text())
    for section in (
        "hooks: {}",
        "freshness: {}",
        "limits: {}",
        "oidc: []",
        "rules: []",
        "policies: []",
    ):
        text = text.replace(section, section[:-3])
    for section in ("warm", "notifications"):
        text = text.replace(f"\n{section}: []", f"\n{section}:")
    written = set(keys_of(yaml.safe_load(text)))
    assert ALL - written == set(), "missing from config/default.yaml"
    assert written - ALL == set(), "no such settings"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_load(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in re.findall(r"\$\{(\w+)\}", example.read_text()):
        monkeypatch.setenv(variable, "secret")
    assert loading.load(example) != Settings()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_the_table_has_every_setting() -> None:
    rows = set(documented())
    assert ALL - rows == set(), "missing from the table in docs/configuration.md: make docs"
    assert rows - ALL == set(), "no such settings"


def test_the_table_explains_every_setting() -> None:
    assert not [".".join(path) for path, (_, meaning) in documented().items() if not meaning]


@pytest.mark.parametrize("path", sorted(ALL), ids=".".join)
def test_the_table_states_the_default(path: KeyPath) -> None:
    text, _ = documented()[path]
    expected = at_default(path)
    if text is None:
        assert expected is None
        return
    if is_in_optional_section(path):
        field, kind = field_at(path), type(expected)
        if kind in (int, float):
            kind = Annotated[field.annotation, *field.metadata]  # type: ignore[name-defined]
            assert TypeAdapter(kind).validate_python(yaml.safe_load(text)) == expected
        else:
            assert kind(yaml.safe_load(text)) == expected
        return
    base = {"upstreams": {"x": {"url": "https://x.example"}}}
    real = tuple("x" if key == NAME else key for key in path)
    laid = merged(base, nested(real, yaml.safe_load(text)))
    assert at(Settings.model_validate(laid), real) == expected


def test_forever_is_what_the_file_says() -> None:
    assert loading.load(DEFAULT).freshness.stale_if_error == math.inf
