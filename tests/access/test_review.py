"""Rules that cannot work as written: faults stop the start, warnings come from ``check``."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.access.review import faults, warnings
from proxy.settings import Settings

PULL = {"allow": "pull"}
GROUPS: dict[str, Any] = {"groups": {"dev": ["ann"]}, "htpasswd_file": "/etc/htpasswd"}


USERS = {"htpasswd_file": "/etc/htpasswd"}
TO_ANN = {"allow": "pull", "to": ["user:ann"]}


def settings(*rules: dict[str, Any], **access: Any) -> Settings:
    return Settings.model_validate({"access": {"rules": rules, **access}})


def test_an_unknown_network_is_a_fault() -> None:
    [fault] = faults(settings({"allow": "pull"}, {"deny": "pull", "to": ["network:ci"]}).access)
    assert "rule 2" in fault
    assert "networks: {ci: [10.0.0.0/8]}" in fault
    known = settings({"deny": "pull", "to": ["network:c*"]}, networks={"ci": ["10.0.0.0/8"]})
    assert not list(faults(known.access))


@pytest.mark.parametrize(
    ("rules", "access", "words"),
    [
        ([{"deny": "pull", "to": ["group:devs"]}, PULL], GROUPS, "nobody is in group:devs"),
        ([{"deny": "pull", "to": ["user:ann"]}, PULL], {}, "there are no users"),
        ([{"deny": "pull", "images": ["gitlab.example/**"]}, PULL], {}, "is not among the upstreams"),
        ([{"allow": "admin", "to": ["user:ann"]}], GROUPS, "so nobody may pull"),
        ([{"allow": "pull"}, {"deny": "pull"}], {}, "never used; rule 1 decides everything"),
        ([{"allow": "pull", "to": ["group:dev"]}], GROUPS, "no dockerd"),
        ([{"allow": "pull", "images": ["docker.io/a/*"], "to": ["group:dev"]}], GROUPS, "no dockerd"),
    ],
)  # fmt: skip
def test_what_is_probably_not_meant_is_a_warning(
    rules: list[dict[str, Any]], access: dict[str, Any], words: str
) -> None:
    [warning] = warnings(settings(*rules, **access))
    assert words in warning


@pytest.mark.parametrize(
    ("rules", "access"),
    [
        ([{"allow": "pull", "images": ["ghcr.io/acme/**"], "to": ["group:dev"]}], GROUPS),
        ([{"allow": "pull", "to": ["group:d*", "network:ci"]}], GROUPS | {"networks": {"ci": []}}),
        ([{"allow": "pull", "to": ["user:ann"]}], {"client_certificates": {"ca_file": "/ca.pem"}}),
        ([{"deny": "pull", "to": ["group:any"]}, PULL], {"tokens_file": "/tokens"}),
        ([{"allow": "pull"}, {"allow": "admin", "to": ["user:ann"]}], GROUPS),
        ([{"allow": "pull", "images": ["docker.io/library/**"]}, {"allow": "pull"}], {}),
        ([{"deny": "pull", "images": ["index.docker.io/a", "nginx*", "lab/**"]}, PULL], {}),
        ([{"deny": "pull", "images": ["GHCR.io/a", "*.example/**"]}, PULL], {}),
    ],
)
def test_what_works_gets_no_warning(rules: list[dict[str, Any]], access: dict[str, Any]) -> None:
    found = settings(*rules, **access)
    assert not list(faults(found.access))
    assert not list(warnings(found))


# --- what dockerd can send to a mirror: docs/access.md ---------------------------------------


@pytest.mark.parametrize(
    "pattern",
    ["nginx", "ngin*", "acme/app", "acme/**", "index.docker.io/acme/**", "*/acme/**", "**/app"],
)
def test_short_names_and_aliases_are_images_of_the_mirror_too(pattern: str) -> None:
    [warning] = warnings(settings(TO_ANN | {"images": [pattern]}, **USERS))
    assert "no dockerd" in warning
    assert "docker.io" in warning


@pytest.mark.parametrize("rule", [PULL, PULL | {"to": ["network:ci"]}])
def test_without_anonymous_clients_no_mirror_of_docker_works(rule: dict[str, Any]) -> None:
    """dockerd sends nothing that proves a user, whatever its network is."""
    access = USERS | {"networks": {"ci": ["10.0.0.0/8"]}, "anonymous": False}
    [warning] = warnings(settings(rule, **access))
    assert "access.anonymous" in warning
    assert "no dockerd" in warning
    assert not list(warnings(settings(rule, **access | {"anonymous": True})))
    certificates = {"client_certificates": {"ca_file": "/ca.pem"}}
    assert not list(warnings(settings(rule, **access, **certificates)))
    assert not list(warnings(settings(rule | {"images": ["ghcr.io/**"]}, **access)))


def test_docker_hub_with_a_host_name_is_a_mirror_too() -> None:
    document = {
        "default_upstream": "ghcr.io",
        "upstreams": {"docker.io": {"hostnames": ["hub.cache.example"]}},
        "access": USERS | {"rules": [TO_ANN | {"images": ["docker.io/**"]}]},
    }
    [warning] = warnings(Settings.model_validate(document))
    assert "no dockerd" in warning
    del document["upstreams"]
    assert not list(warnings(Settings.model_validate(document)))


@pytest.mark.parametrize(
    ("access", "count"),
    [
        ({"htpasswd_file": "/etc/htpasswd"}, 1),
        ({"htpasswd_file": "/etc/htpasswd", "user": "ci:{sub}"}, 0),
        ({}, 0),
    ],
)
def test_names_that_two_sources_can_give_are_a_warning(access: dict[str, Any], count: int) -> None:
    user = access.pop("user", "{sub}")
    issuer = {"issuer": "https://issuer.example", "audience": "millpond", "user": user}
    found = [
        text for text in warnings(settings(PULL, oidc=[issuer], **access)) if "issuer 1" in text
    ]
    assert len(found) == count


@pytest.mark.parametrize(("anonymous", "count"), [(False, 1), (True, 0)])
def test_callers_who_are_refused_as_anonymous_are_a_warning(anonymous: bool, count: int) -> None:
    asked_as_caller = Settings.model_validate(
        {
            "access": {**USERS, "anonymous": anonymous},
            "upstreams": {"lab": {"url": "https://lab.example", "credentials": "caller"}},
        }
    )
    found = [text for text in warnings(asked_as_caller) if text.startswith("upstreams.lab")]
    assert len(found) == count


def test_the_host_of_an_upstream_is_one_of_its_names() -> None:
    document = {
        "upstreams": {"lab": {"url": "https://registry.lab.example"}},
        "access": USERS | {"rules": [TO_ANN | {"images": ["registry.lab.example/**"]}]},
    }
    assert not list(warnings(Settings.model_validate(document)))


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "access.md").read_text()


@pytest.mark.parametrize(
    "block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
)
def test_the_recipes_get_no_warning(block: str) -> None:
    document = yaml.safe_load(block)
    if "jobs" in document:
        return  # a workflow of GitHub
    found = Settings.model_validate(document)
    assert not [*faults(found.access), *warnings(found)]
