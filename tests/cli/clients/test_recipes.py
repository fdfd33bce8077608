"""The files have the shape that each client reads; clients that are here pull with them, see
``tests/clients/test_client_setup.py``."""

import json
import shlex
import tomllib
from typing import Any

import pytest
import yaml
from yarl import URL

from proxy.cli.client_setup import ClientName
from proxy.cli.clients.instance import Instance, Login, Registry
from proxy.cli.clients.merging import Unreadable
from proxy.cli.clients.recipes import Recipe, recipe

HUB, GHCR = Registry("docker.io"), Registry("ghcr.io")
PLAIN = Instance(URL("http://127.0.0.1:5000"), (HUB, GHCR))
NETWORK = Instance(URL("http://cache.example:5000"), (HUB, GHCR))
PEM = "-----BEGIN CERTIFICATE-----\n"
SECURE = Instance(
    URL("https://cache.example"),
    (HUB, GHCR),
    ca=PEM,
    login=Login("ci", "mp_secret"),
    asks_for_login=True,
)


def texts(found: Recipe) -> dict[str, str]:
    return {file.path: file.text for file in found.files}


def toml(client: ClientName, instance: Instance, path: str) -> dict[str, Any]:
    return tomllib.loads(texts(recipe(client, instance))[path])


def test_docker_mirrors_docker_hub_and_trusts_the_network_s_http() -> None:
    [file] = recipe(ClientName.DOCKER, PLAIN).files
    assert json.loads(file.text) == {"registry-mirrors": ["http://127.0.0.1:5000"]}
    [file] = recipe(ClientName.DOCKER, NETWORK).files
    assert json.loads(file.text) == {
        "registry-mirrors": ["http://cache.example:5000"],
        "insecure-registries": ["cache.example:5000"],
    }
    secure = recipe(ClientName.DOCKER, SECURE)
    assert texts(secure)["/etc/docker/certs.d/cache.example/ca.crt"] == PEM
    assert any("docker login cache.example" in note for note in secure.notes)


def test_docker_is_told_that_a_mirror_needs_the_default_registry() -> None:
    other = Instance(PLAIN.url, (HUB, GHCR), default="ghcr.io")
    assert any("cannot work" in note for note in recipe(ClientName.DOCKER, other).notes)
    assert not any("cannot work" in note for note in recipe(ClientName.DOCKER, PLAIN).notes)


def test_containerd_gets_hosts_files_with_authority_and_header() -> None:
    path = "/etc/containerd/certs.d/docker.io/hosts.toml"
    document = toml(ClientName.CONTAINERD, SECURE, path)
    assert document["server"] == "https://registry-1.docker.io"
    assert document["host"] == {
        "https://cache.example": {
            "capabilities": ["pull", "resolve"],
            "ca": "/etc/containerd/millpond-ca.crt",
            "header": {"Authorization": "Basic Y2k6bXBfc2VjcmV0"},
        }
    }
    modes = {file.path: file.mode for file in recipe(ClientName.CONTAINERD, SECURE).files}
    assert modes[path] == 0o600
    assert modes["/etc/containerd/config.toml"] == 0o644


@pytest.mark.parametrize(
    ("version", "plugin"),
    [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.images")],
)
def test_containerd_keeps_the_version_and_the_directory_of_its_file(
    version: int, plugin: str
) -> None:
    current = f'version = {version}\n[plugins."{plugin}".registry]\nconfig_path = "/srv/hosts:/x"\n'
    files = texts(
        recipe(ClientName.CONTAINERD, PLAIN, {"/etc/containerd/config.toml": current}.get)
    )
    assert "/srv/hosts/ghcr.io/hosts.toml" in files
    assert tomllib.loads(files["/etc/containerd/config.toml"]) == tomllib.loads(current)


@pytest.mark.parametrize(
    ("current", "words"),
    [
        ("[plugins.cri]\n", "version 1"),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors.x]\nendpoint = []\n',
            "registry.mirrors",
        ),
        ("version =\n", "line 1"),
        ("version = 2\nplugins = 1\n", "not a table"),
    ],
)
def test_containerd_refuses_a_file_that_it_would_break(current: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        recipe(ClientName.CONTAINERD, PLAIN, lambda _: current)


@pytest.mark.parametrize("client", [ClientName.PODMAN, ClientName.SKOPEO, ClientName.CRIO])
def test_containers_image_gets_the_registry_in_the_path(client: ClientName) -> None:
    path = "/etc/containers/registries.conf.d/50-millpond.conf"
    assert toml(client, PLAIN, path)["registry"] == [
        {
            "location": name,
            "mirror": [{"location": f"127.0.0.1:5000/{name}", "insecure": True}],
        }
        for name in ("docker.io", "ghcr.io")
    ]
    mirrors = toml(client, SECURE, path)["registry"]
    assert mirrors[0]["mirror"] == [{"location": "cache.example/docker.io"}]
    assert texts(recipe(client, SECURE))["/etc/containers/certs.d/cache.example/ca.crt"] == PEM


def test_buildkit_names_the_mirror_and_how_to_reach_it() -> None:
    path = "/etc/buildkit/buildkitd.toml"
    assert toml(ClientName.BUILDKIT, PLAIN, path) == {
        "registry": {
            "docker.io": {"mirrors": ["127.0.0.1:5000"]},
            "ghcr.io": {"mirrors": ["127.0.0.1:5000"]},
            "127.0.0.1:5000": {"http": True},
        }
    }
    secure = toml(ClientName.BUILDKIT, SECURE, path)["registry"]
    assert secure["cache.example"] == {"ca": ["/etc/buildkit/millpond-ca.crt"]}


def test_k3s_gets_endpoints_and_the_configuration_of_the_host() -> None:
    [file] = recipe(ClientName.K3S, PLAIN).files
    assert file.path == "/etc/rancher/k3s/registries.yaml"
    endpoint = {"endpoint": ["http://127.0.0.1:5000"]}
    assert yaml.safe_load(file.text) == {"mirrors": {"docker.io": endpoint, "ghcr.io": endpoint}}
    file, _ = recipe(ClientName.K3S, SECURE).files
    assert file.mode == 0o600
    assert yaml.safe_load(file.text)["configs"] == {
        "cache.example": {
            "auth": {"username": "ci", "password": "mp_secret"},
            "tls": {"ca_file": "/etc/rancher/k3s/millpond-ca.crt"},
        }
    }


def test_kaniko_maps_what_has_a_host_name_or_an_alias_without_a_dot() -> None:
    registries = (
        HUB,
        GHCR,
        Registry("quay.io", hostnames=("quay.cache.example",)),
        Registry("gcr.io", aliases=("g.example", "google")),
    )
    found = recipe(ClientName.KANIKO, Instance(NETWORK.url, registries))
    assert found.files == ()
    [example] = found.examples
    program, *flags = shlex.split(example.replace("\\\n", ""))
    assert program == "/kaniko/executor"
    assert flags == [
        "--registry-mirror=cache.example:5000",
        "--registry-map=quay.io=quay.cache.example:5000",
        "--registry-map=gcr.io=cache.example:5000/google",
        "--insecure-registry=cache.example:5000",
        "--insecure-registry=quay.cache.example:5000",
    ]
    assert any("ghcr.io" in note and "hostnames" in note for note in found.notes)


def test_helm_is_addressed_by_path() -> None:
    found = recipe(ClientName.HELM, PLAIN)
    assert found.files == ()
    assert found.examples[1] == "helm pull oci://127.0.0.1:5000/ghcr.io/ORG/CHART --plain-http"
    assert recipe(ClientName.HELM, SECURE).commands == (
        "helm registry login cache.example --ca-file /etc/millpond-ca.crt",
    )


def test_an_address_is_written_as_clients_write_it() -> None:
    hosts = [
        Instance(URL(url), ()).host for url in ("https://a:443", "http://a:80", "http://[::1]:5")
    ]
    assert hosts == ["a", "a", "[::1]:5"]


def test_a_password_is_in_no_text_that_is_shown() -> None:
    for client in ClientName:
        for file in recipe(client, SECURE).files:
            shown = SECURE.hidden(file.text)
            assert "mp_secret" not in shown
            assert "Y2k6bXBfc2VjcmV0" not in shown
    assert "mp_secret" not in repr(SECURE)
