"""Rules that cannot work as written: faults stop the start, warnings come from ``check``."""

from typing import Any

import pytest

from proxy.access.review import faults, warnings
from proxy.settings import Settings

PULL = {"allow": "pull"}
GROUPS: dict[str, Any] = {"groups": {"dev": ["ann"]}, "htpasswd_file": "/etc/htpasswd"}


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
