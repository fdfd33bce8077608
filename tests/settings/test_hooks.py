"""The settings of hooks: valid values, and error messages."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.app.validation import validate
from proxy.core.errors import ConfigError
from proxy.settings import Settings

SECRET = "0123456789abcdef"


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    return file


def hook(secret_file: Path, **others: Any) -> dict[str, Any]:
    return {"format": "quay", "secret_file": str(secret_file), **others}


def settings(tmp_path: Path, hooks: dict[str, Any], **others: Any) -> Settings:
    base = {"storage": {"path": str(tmp_path / "cache")}, "hooks": hooks}
    return Settings.model_validate(base | others)


@pytest.mark.parametrize(
    ("form", "registry"), [("dockerhub", "docker.io"), ("github", "ghcr.io"), ("quay", "quay.io")]
)
def test_a_format_with_one_registry_needs_no_upstream(
    tmp_path: Path, secret_file: Path, form: str, registry: str
) -> None:
    found = settings(tmp_path, {"a": hook(secret_file, format=form)})
    validate(found)
    assert found.hooks["a"].registry == registry
    other = settings(tmp_path, {"a": hook(secret_file, format=form, upstream="gcr.io")})
    assert other.hooks["a"].registry == "gcr.io"


@pytest.mark.parametrize("form", ["harbor", "gitlab", "distribution"])
def test_the_others_need_one(tmp_path: Path, secret_file: Path, form: str) -> None:
    with pytest.raises(ValidationError, match="upstream is missing"):
        settings(tmp_path, {"a": hook(secret_file, format=form)})


@pytest.mark.parametrize("name", ["", "A", "a/b", "a b", "-a", "a" * 65, "a\n"])
def test_a_name_is_part_of_a_path(tmp_path: Path, secret_file: Path, name: str) -> None:
    with pytest.raises(ValidationError):
        settings(tmp_path, {name: hook(secret_file)})


def test_an_unknown_format_is_refused(tmp_path: Path, secret_file: Path) -> None:
    with pytest.raises(ValidationError, match="distribution"):
        settings(tmp_path, {"a": hook(secret_file, format="acr")})


def test_faults_of_upstream_and_secret_are_found(tmp_path: Path, secret_file: Path) -> None:
    short, empty, second = tmp_path / "short", tmp_path / "empty", tmp_path / "second"
    second.write_text("0123456789abcdef\nhunter2\n")
    short.write_text("hunter2\n")
    empty.write_text("\n")
    hooks = {
        "a": hook(secret_file, upstream="nowhere.example"),
        "b": hook(secret_file, upstream="ghcr.io"),
        "c": hook(short),
        "d": hook(empty),
        "e": hook(tmp_path / "none"),
        "f": hook(second),
    }
    upstreams = {"ghcr.io": {"credentials": "caller"}}
    with pytest.raises(ConfigError) as refused:
        validate(settings(tmp_path, hooks, upstreams=upstreams))
    text = str(refused.value)
    assert "hooks.a.upstream: nowhere.example is not among the upstreams" in text
    assert "hooks.b.upstream: ghcr.io is asked only as its clients" in text
    assert "hooks.c.secret_file: the secret is too short" in text
    assert "hooks.d.secret_file" in text
    assert "hooks.e.secret_file" in text
    assert "hooks.f.secret_file: the secret is too short" in text
    assert "hunter2" not in text
