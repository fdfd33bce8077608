"""Which images a name or a pattern means: the same for every command, as people write them."""

import time

import pytest

from proxy.core.errors import DigestInvalid, NameInvalid, RegistryError, TagInvalid
from proxy.core.names import Digest, Repo, Tag, Target
from proxy.core.routing import Router
from proxy.settings import Settings

ROUTER = Router(Settings.model_validate({"upstreams": {"lab": {"url": "http://10.0.0.5:5000"}}}))
ONE, OTHER = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)
KNOWN = {
    name: (Target(name.partition("/")[0], Repo(name.partition("/")[2].partition(":")[0])), Tag(name.rpartition(":")[2]))
    for name in (
        "docker.io/library/nginx:1.27",
        "docker.io/library/nginx:latest",
        "docker.io/library/nginx-unit:1",
        "docker.io/bitnami/nginx:1.27",
        "ghcr.io/org/app:1",
        "ghcr.io/org/team/app:1",
        "lab/app:1",
        "removed.example/app:1",
    )
}  # fmt: skip


def meant(text: str) -> list[str]:
    selector = ROUTER.parse_selector(text)
    return [name for name, (target, tag) in KNOWN.items() if selector.matches(target, tag, ONE)]


NGINX = ["docker.io/library/nginx:1.27", "docker.io/library/nginx:latest"]
UNIT = "docker.io/library/nginx-unit:1"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nginx", NGINX),
        ("library/nginx", NGINX),
        ("docker.io/nginx", NGINX),
        ("docker.io/library/nginx", NGINX),
        ("index.docker.io/library/nginx", NGINX),
        ("docker://nginx:1.27", NGINX[:1]),
        ("docker.io/nginx:1.27", NGINX[:1]),
        (f"nginx@{ONE}", NGINX),
        (f"nginx:1.27@{ONE}", NGINX),
        (f"nginx@{OTHER}", []),
        (ONE, list(KNOWN)),
        ("nginx:1.*", NGINX[:1]),
        ("nginx:*", NGINX),
        ("nginx:?.27", NGINX[:1]),
        ("nginx:[12].27", NGINX[:1]),
        ("nginx:[!1]*", NGINX[1:]),
        ("nginx*", [*NGINX, UNIT]),
        ("docker.io/nginx*", [*NGINX, UNIT]),
        ("docker.io/library/*", [*NGINX, UNIT]),
        ("docker.io/*/nginx", [*NGINX, "docker.io/bitnami/nginx:1.27"]),
        ("ghcr.io/org/*", ["ghcr.io/org/app:1"]),
        ("ghcr.io/org/**", ["ghcr.io/org/app:1", "ghcr.io/org/team/app:1"]),
        ("ghcr.io/**/app", ["ghcr.io/org/app:1", "ghcr.io/org/team/app:1"]),
        ("ghcr.io/**:1", ["ghcr.io/org/app:1", "ghcr.io/org/team/app:1"]),
        ("ghcr.io/*", []),
        ("ghcr.io/**:2", []),
        ("*", list(KNOWN)),
        ("**", list(KNOWN)),
        ("*:latest", NGINX[1:]),
        ("*/app:1", [name for name in KNOWN if name.endswith("/app:1")]),
        ("lab/*", ["lab/app:1"]),
        ("removed.example/app", ["removed.example/app:1"]),
        ("removed.example/*:1", ["removed.example/app:1"]),
        ("none*", []),
    ],
)
def test_t68_names_are_understood_as_people_write_them(text: str, names: list[str]) -> None:
    assert meant(text) == names


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", NameInvalid),
        ("Nginx", NameInvalid),
        ("ghcr.io//*", NameInvalid),
        ("nginx:", TagInvalid),
        ("nginx*:", TagInvalid),
        ("nginx@sha256:1", DigestInvalid),
        ("*" * 2000, NameInvalid),
    ],
)
def test_what_is_no_name_is_refused(text: str, error: type[RegistryError]) -> None:
    with pytest.raises(error):
        ROUTER.parse_selector(text)


def test_a_pattern_of_many_wildcards_takes_no_time() -> None:
    target = Target("docker.io", Repo("/".join(["a" * 10] * 20)))
    for pattern in ("docker.io/" + "**/a*a*a*a*b/" * 20 + "x", "*a" * 100 + "b"):
        selector = ROUTER.parse_selector(pattern)
        started = time.process_time()
        assert not selector.matches(target, Tag("a" * 100), ONE)
        assert time.process_time() - started < 1
