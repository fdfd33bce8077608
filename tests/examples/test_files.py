"""Each file in the documents is read by its program: settings by Millpond's own loader."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from proxy.app.validation import validate
from proxy.core.errors import ConfigError
from proxy.settings import Settings
from proxy.settings.loading import load
from tests.examples.blocks import PAGES, ROOT, Block, every
from tests.examples.scripts import is_drawn, is_listing, is_shell
from tests.examples.table import CONTEXT, FOREIGN
from tests.examples.world import write_secrets
from tests.parts.docker import settings as docker_settings
from tests.parts.process import NO_AUTHORITIES

BLOCKS = every()
YAML = [block for block in BLOCKS if block.language == "yaml"]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
DIALECTS = {"host", "server", "registry", "plugins", "version"}
"""The keys of hosts.toml, registries.conf, buildkitd.toml and containerd's config.toml."""


def is_foreign(block: Block) -> bool:
    return block.text.split(":")[0] in FOREIGN.get(block.page, {})


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_every_example_is_of_a_kind_that_is_tested() -> None:
    others = [block for block in BLOCKS if block.language not in {"yaml", "json", "toml", "python"}]
    assert not [str(block) for block in others if sum(_kinds(block)) != 1]


def test_python_is_tested_elsewhere() -> None:
    """tests/services/notifications/test_notifications.py runs it on what Millpond signs."""
    [block] = of("python")
    assert block.page == "docs/events.md"
    compile(block.text, block.page, "exec")


def _kinds(block: Block) -> Iterator[bool]:
    plain = block.language == ""
    yield from (is_shell(block), plain and is_drawn(block), plain and is_listing(block))


@pytest.fixture(scope="module")
def etc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files below /etc/millpond that the examples name."""
    folder = tmp_path_factory.mktemp("etc")
    write_secrets(folder)
    return folder


@pytest.mark.parametrize("block", [one for one in YAML if not is_foreign(one)], ids=str)
def test_settings_are_valid(
    block: Block, etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader takes them, and the files and values work on a machine."""
    for name in NO_AUTHORITIES:  # the client of a bucket wants those of the system
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "config.yaml"
    text = block.text.replace("/etc/millpond", str(etc))
    file.write_text(text.replace("/var/lib/millpond", str(tmp_path / "cache")))
    beside = {"listen": "127.0.0.1:0", "storage": {"path": str(tmp_path / "cache")}}
    settings = load(file, beside | CONTEXT.get(block.page, {}))
    assert settings != Settings()
    validate(settings)


def test_the_loader_refuses_a_wrong_example(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("storage: {max_sise: 20GiB}\n")
    with pytest.raises(ConfigError, match="max_sise"):
        load(file)


@pytest.mark.parametrize("block", [one for one in YAML if is_foreign(one)], ids=str)
def test_yaml_of_others_is_yaml(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.text), dict)


def test_every_foreign_block_exists() -> None:
    known = {(page, key) for page, keys in FOREIGN.items() for key in keys}
    assert known == {(one.page, one.text.split(":")[0]) for one in YAML if is_foreign(one)}


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_is_a_configuration_of_docker_or_an_event(block: Block) -> None:
    document = json.loads(block.text)
    if block.page == "docs/events.md":
        assert {"specversion", "type", "subject", "data"} <= document.keys()
        return
    assert document.keys() <= docker_settings(Path(), Path(), "x").keys() | {"insecure-registries"}


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_toml_is_a_configuration_of_a_client(block: Block) -> None:
    document = tomllib.loads(block.text)
    assert document.keys() <= DIALECTS
    assert any(address in block.text for address in ("127.0.0.1:5000", "cache.acme", "certs.d"))


# --- settings in the text --------------------------------------------------------------------

SPAN = re.compile(r"`([a-z_][\w.]*): ([^`\n]+)`")
PLACEHOLDER = re.compile(r"[A-Z]+")


def fields(model: type[BaseModel]) -> Iterator[tuple[str, TypeAdapter[Any]]]:
    """Yield the name and the type of every setting, those of nested sections too."""
    for name, field in model.model_fields.items():
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        yield field.alias or name, TypeAdapter(kind)
        for below in _models(field.annotation):
            yield from fields(below)


def _models(hint: Any) -> Iterator[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for part in get_args(hint):
        yield from _models(part)


FIELDS = list(fields(Settings))


def spans() -> list[tuple[str, str, str]]:
    """Return each ``name: value`` in the text of a page that is about a setting."""
    names = {name for name, _ in FIELDS}
    return [
        (page, name, value)
        for page in PAGES
        for name, value in SPAN.findall(FENCED.sub("", (ROOT / page).read_text()))
        if name.rsplit(".", 1)[-1] in names and not PLACEHOLDER.fullmatch(value)
    ]


@pytest.mark.parametrize(("page", "name", "value"), sorted(set(spans())))
def test_settings_in_the_text_are_valid(page: str, name: str, value: str) -> None:
    refusals = []
    for known, kind in FIELDS:
        if known == name.rsplit(".", 1)[-1]:
            try:
                kind.validate_python(yaml.safe_load(f"x: {value}")["x"])
            except ValidationError as error:
                refusals.append(error)
            else:
                return
    pytest.fail(f"{page}: {name}: {value}: {refusals}")


def test_a_wrong_setting_in_the_text_is_found() -> None:
    with pytest.raises(pytest.fail.Exception, match="max_size: much"):
        test_settings_in_the_text_are_valid("a page", "max_size", "much")
