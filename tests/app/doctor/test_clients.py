"""Configurations of clients on this machine, as their own documents have them."""

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.app.doctor.clients import Clients
from proxy.app.doctor.results import Finding
from tests.app.doctor.checking import says, settings_of
from tests.fakes.tls import certificate

PORT = 5000
TLS = "127.0.0.1:5000 is asked by"

FILES: dict[str, tuple[str, str]] = {
    "docker": (
        "etc/docker/daemon.json",
        json.dumps({"registry-mirrors": ["http://127.0.0.1:5000/"]}),
    ),
    "containerd": (
        "etc/containerd/certs.d/docker.io/hosts.toml",
        (
            'server = "https://registry-1.docker.io"\n'
            '[host."http://localhost:5000"]\n  capabilities = ["pull", "resolve"]\n'
        ),
    ),
    "podman": (
        "etc/containers/registries.conf.d/millpond.conf",
        (
            '[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n'
            '[[registry.mirror]]\nlocation = "127.0.0.1:5000/docker.io"\ninsecure = true\n'
        ),
    ),
    "buildkit": (
        "etc/buildkit/buildkitd.toml",
        (
            '[registry."docker.io"]\n  mirrors = ["127.0.0.1:5000"]\n'
            '[registry."127.0.0.1:5000"]\n  http = true\n'
        ),
    ),
    "k3s": (
        "etc/rancher/k3s/registries.yaml",
        'mirrors:\n  docker.io:\n    endpoint: ["http://127.0.0.1:5000"]\n',
    ),
}


def write(root: Path, client: str, change: tuple[str, str] = ("", "")) -> None:
    path, text = FILES[client]
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace(*change) if change[0] else text)


def look(root: Path, client: str, **changes: Any) -> Finding:
    hub = {"url": "http://127.0.0.1:1"}
    settings = settings_of(root, hub, **{"listen": f"127.0.0.1:{PORT}", **changes})
    found: Finding = getattr(Clients(settings, root), client)()
    return found


@pytest.mark.parametrize("client", FILES)
def test_a_client_that_pulls_through_this_millpond(tmp_path: Path, client: str) -> None:
    says(look(tmp_path, client), "skipped", "no configuration on this machine")
    write(tmp_path, client)
    says(look(tmp_path, client), "ok", "pulls of docker.io come through", ":5000")
    says(look(tmp_path, client, listen="0.0.0.0:5000"), "ok")


@pytest.mark.parametrize("client", FILES)
def test_a_client_that_leads_elsewhere(tmp_path: Path, client: str) -> None:
    write(tmp_path, client)
    found = look(tmp_path, client, listen="127.0.0.1:5001")
    says(found, "skipped", "none of its 1 mirrors leads here")
    write(tmp_path, client, ("127.0.0.1", "10.9.8.7"))
    if client != "containerd":
        says(look(tmp_path, client), "skipped", "none of its 1 mirrors leads here")


@pytest.mark.parametrize("client", FILES)
def test_a_file_that_is_malformed(tmp_path: Path, client: str) -> None:
    write(tmp_path, client, ("[", "{"))
    found = look(tmp_path, client)
    says(found, "failed", FILES[client][0], "cannot be used: it is malformed", "correct /")


def test_a_file_that_is_nested_too_deeply(tmp_path: Path) -> None:
    write(tmp_path, "docker", ("{", "[" * 100_000))
    says(look(tmp_path, "docker"), "failed", "cannot be used: it is malformed")


@pytest.mark.parametrize("client", FILES)
def test_a_client_that_asks_by_the_wrong_protocol(tmp_path: Path, client: str) -> None:
    write(tmp_path, client)
    folder = tmp_path / "tls"
    folder.mkdir()
    made = certificate(folder)
    tls = {"cert_file": str(made.authority), "key_file": str(folder / "key.pem")}
    if client in ("docker", "containerd", "k3s"):
        found = look(tmp_path, client, tls=tls)
        says(found, "failed", "asked by http, but Millpond speaks HTTPS", "millpond client")
        write(tmp_path, client, ("http://", "https://"))
        says(look(tmp_path, client), "failed", "asked by https, but Millpond speaks plain")
        return
    change = ("insecure = true", "") if client == "podman" else ("http = true", "")
    write(tmp_path, client, change)
    says(look(tmp_path, client), "failed", "insecure = true is missing")
    says(look(tmp_path, client, tls=tls), "ok")


def test_several_mirrors(tmp_path: Path) -> None:
    write(tmp_path, "docker", ('"http', '"https://mirror.gcr.io", "http'))
    found = look(tmp_path, "docker")
    says(found, "warning", "there are other mirrors too")


def test_a_registry_whose_location_is_this_millpond(tmp_path: Path) -> None:
    file = tmp_path / "etc/containers/registries.conf"
    file.parent.mkdir(parents=True)
    file.write_text(
        'unqualified-search-registries = ["docker.io"]\n'
        '[[registry]]\nprefix = "ghcr.io"\nlocation = "127.0.0.1:5000/ghcr.io"\ninsecure = true\n'
    )
    says(look(tmp_path, "podman"), "ok", "pulls of ghcr.io come through 127.0.0.1:5000")
