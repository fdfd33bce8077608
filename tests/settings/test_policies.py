"""The settings of policies: valid values, and error messages."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.core.errors import ConfigError
from proxy.settings import loading
from proxy.settings.policies import Policy


def test_a_policy_with_everything() -> None:
    policy = Policy.model_validate(
        {
            "name": "x",
            "images": ["docker.io/acme/**"],
            "except": ["docker.io/acme/free"],
            "require": {"cosign": {"keys": ["cosign.pub"]}},
            "deny_digests_file": "/etc/denied",
            "max_image_size": "20GiB",
            "platforms": ["linux/amd64", "linux/arm/v7"],
            "media_types": ["application/vnd.oci.image.config.v1+json"],
            "because": "SEC-1",
            "audit": True,
        }
    )
    assert policy.max_image_size == 20 * 1024**3
    assert policy.except_ == ("docker.io/acme/free",)
    assert policy.require is not None
    assert policy.require.cosign.keys == (Path("cosign.pub"),)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({}, "at least one of require, deny"),
        ({"images": ["**"]}, "at least one of require, deny"),
        ({"deny": True, "images": []}, "at least 1 item"),
        ({"deny": True, "images": ["docker.io/app:1.0"]}, "leave the tag out"),
        ({"deny": True, "images": ["docker.io/app@sha256:0"]}, "leave the tag out"),
        ({"deny": True, "except": ["a//b"]}, "is no name"),
        ({"platforms": ["amd64"]}, "write linux/amd64"),
        ({"media_types": ["config"]}, "is no media type"),
        ({"max_image_size": "big"}, "not a size"),
        ({"max_image_size": 0}, "greater than 0"),
        ({"require": {}}, "must be set"),
        ({"require": {"cosign": {"keys": []}}}, "at least 1 item"),
        ({"require": {"notation": {}}}, "no such setting"),
        ({"deni": True}, "did you mean deny"),
        ({"deny": True, "name": ""}, "at least 1 character"),
    ],
    ids=str,
)
def test_errors_say_where_and_what(tmp_path: Path, policy: dict[str, Any], said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"listen": "127.0.0.1:0", "policies": [policy]}))
    with pytest.raises(ConfigError) as error:
        loading.load(file)
    assert said in str(error.value)
    assert f"{file}:" in str(error.value)
    assert "policies.0" in str(error.value)
