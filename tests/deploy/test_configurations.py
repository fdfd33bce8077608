"""Millpond's own loader accepts every configuration that `deploy/` contains."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.settings import Settings
from proxy.settings.loading import load
from tests.deploy.cluster import DEPLOY, EXAMPLES, kind, kustomized, templated

COMPOSE = [DEPLOY / "compose.yaml", DEPLOY / "fleet" / "compose.yaml"]
FLEETS = {"fleet/millpond.yaml", "kubernetes/fleet/config.yaml", "kubernetes/node/config.yaml"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "open-sesame")
    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", "someone")


def loaded(text: str, folder: Path) -> Settings:
    file = folder / "config.yaml"
    file.write_text(text)
    return load(file)


@pytest.mark.parametrize("name", sorted(FLEETS))
def test_files_are_loaded(name: str) -> None:
    settings = load(DEPLOY / name)
    assert settings.fleet.redis is not None
    assert settings.fleet.redis.get_secret_value().startswith("redis://")
    assert settings.fleet.secret_file is not None
    assert (settings.storage.bucket is None) == ("node" in name)


def test_no_file_is_forgotten() -> None:
    found = {
        str(file.relative_to(DEPLOY))
        for file in DEPLOY.rglob("*.yaml")
        if re.search(r"^fleet:", file.read_text(), re.MULTILINE)
    }
    assert found == FLEETS


@pytest.mark.parametrize("values", [None, *EXAMPLES], ids=lambda path: path and path.name)
def test_what_the_chart_makes_is_loaded(values: Path | None, tmp_path: Path) -> None:
    [config] = kind(templated(values), "ConfigMap")
    settings = loaded(config["data"]["config.yaml"], tmp_path)
    assert settings.storage.path == Path("/var/lib/millpond")
    assert (settings.fleet.redis is None) == (values is None or values.name == "tls.yaml")


@pytest.mark.parametrize("name", ["fleet", "node"])
def test_what_kustomize_makes_is_loaded(name: str, tmp_path: Path) -> None:
    configs = kind(kustomized(name, tmp_path), "ConfigMap")
    [text] = [each["data"]["config.yaml"] for each in configs if "config.yaml" in each["data"]]
    assert loaded(text, tmp_path) == load(DEPLOY / "kubernetes" / name / "config.yaml")


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.parent.name)
def test_variables_of_compose_files_are_settings(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    variables = {
        name: str(value)
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if name.startswith("MILLPOND_")
    }
    assert variables
    for name, value in variables.items():
        if name != "MILLPOND_CONFIG":
            monkeypatch.setenv(name, value)
    load(None)
