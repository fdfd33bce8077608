"""The settings of watch: valid values, and error messages."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.app.validation import validate
from proxy.core.errors import ConfigError
from proxy.settings import Settings
from proxy.settings.watch import Watch


def test_a_list_is_short_for_its_images() -> None:
    assert Watch.model_validate(["nginx:1.27"]) == Watch(images=("nginx:1.27",))
    assert Settings.model_validate({"watch": ["nginx"]}).watch.every == 600.0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (["nginx@sha256:" + "0" * 64], "a digest never changes"),
        ({"images": [""]}, "is no name"),
        ({"platforms": ["amd64"]}, "is no platform"),
        ({"every": "0s"}, "not an interval"),
        ({"every": "forever"}, "not an interval"),
        ({"interval": "5m"}, "Extra inputs"),
        ("nginx", "Watch"),
    ],
)
def test_what_is_refused(document: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Watch.model_validate(document)


def test_names_of_unknown_registries_are_found(tmp_path: Path) -> None:
    storage = {"path": str(tmp_path / "cache")}
    settings = Settings.model_validate({"watch": ["nowhere.example/a:1"], "storage": storage})
    with pytest.raises(ConfigError, match=r"watch: 'nowhere\.example'"):
        validate(settings)
