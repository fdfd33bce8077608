"""Where the examples run: a registry, Millpond before it, Docker, and a directory with files."""

import base64
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import yaml

from proxy.settings.upstreams import BUILT_IN
from tests.examples import bridge, table
from tests.examples.blocks import ROOT, every
from tests.examples.scripts import Command
from tests.fakes import tls
from tests.parts import docker as docker_part
from tests.parts import millpond, registry
from tests.parts.docker import Docker
from tests.parts.images import ELSEWHERE, HERE, OCI
from tests.parts.millpond import Millpond
from tests.parts.process import NO_AUTHORITIES, command, workdir
from tests.parts.push import Pusher, Recipe, push_index, random_layer
from tests.parts.registry import Registry
from tests.parts.token_server import Access

USER, PASSWORD = "reader", "reader-secret"
SECRET = "5f0c64ccd4f7ab18e3d6df21f5ad5b4f"
HOOKS = ("hub", "packages", "quay", "harbor", "gitlab", "lab")
TOKEN = "an-admin-token-of-the-examples"

PROGRAMS = {
    "make": 'exec {make} --dry-run --directory {root} "$@"',
    "docker": 'test "$1" = ps && echo nginx:1.27 || exec {docker} "$@"',
    "curl": 'exec {curl} --fail-with-body "$@"',
    "helm": "test -d ./chart || exit 1\ncat k8s.yaml",
    "podman": 'exec {podman} --root "$HOME/podman" --runroot "$HOME/run" '
    '--storage-driver vfs --cgroup-manager cgroupfs "$@"',
    "skopeo": 'exec {skopeo} --insecure-policy --tmpdir "$HOME" "$@"',
    "python3": 'exec {python} "$@"',
}
"""Programs in front of the real ones: to build nothing, and to keep state in the directory."""


@dataclass(frozen=True, slots=True)
class World:
    """Its fields are what ``table.PLACES`` names."""

    home: Path
    proxy: Millpond
    docker: Docker
    listing_registry: str

    @property
    def url(self) -> str:
        return self.proxy.url

    @property
    def address(self) -> str:
        return self.proxy.address

    @property
    def storage(self) -> Path:
        return self.proxy.storage

    @property
    def etc(self) -> Path:
        return self.home / "etc"

    @property
    def config_option(self) -> str:
        return f"--config {self.proxy.config}"

    @property
    def write_option(self) -> str:
        """Below a directory instead of in /etc of this machine."""
        return f"containerd --write --root {self.home}/machine"

    @property
    def secret(self) -> str:
        return SECRET

    def placed(self, text: str) -> str:
        """Return a text of a document with the places of this world."""
        for old, field in table.PLACES.items():
            text = text.replace(old, str(getattr(self, field)))
        return text

    def run(self, example: Command, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of a document, after what comes before it."""
        before = [
            script for start, script in table.BEFORE.items() if example.text.startswith(start)
        ]
        given = [text for start, text in table.GIVEN.items() if example.text.startswith(start)]
        after = [script for start, script in table.AFTER.items() if example.text.startswith(start)]
        script = "\n".join([*before, self.placed(example.text), *after])
        names = table.ENVIRONMENT.get(example.page, {})
        variables = {name: str(getattr(self, field)) for name, field in names.items()}
        return subprocess.run(
            [command("bash"), "-e", "-o", "pipefail", "-c", script],
            cwd=self.home, env=self._environment | variables | environment, input="".join(given),
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    @property
    def _environment(self) -> dict[str, str]:
        ours = {
            "MILLPOND_CONFIG": str(self.proxy.config),
            "PYTHONPATH": str(ROOT),
            "etc": str(self.etc),
            "storage": str(self.storage),
            "REGISTRY_AUTH_FILE": str(self.home / "auth.json"),
            **NO_AUTHORITIES,
        }
        path = os.pathsep.join((str(self.home / "bin"), self.docker.env["PATH"]))
        return self.docker.env | ours | {"PATH": path, "HOME": str(self.home)}


@contextmanager
def running() -> Iterator[World]:
    with registry.running(Access({"pusher": "secret"})) as upstream, workdir("examples") as home:
        _push(upstream)
        _write(home)
        with (
            registry.with_htpasswd(upstream.storage, home / "users") as listing,
            millpond.running(upstream.url, 0, _settings(home, upstream.url, listing)) as proxy,
            docker_part.running(proxy.address) as docker,
            bridge.stub(home / "bin" / "millpond", home / "millpond.sock"),
        ):
            yield World(home, proxy, docker, listing)


def _push(upstream: Registry) -> None:
    pusher = Pusher(upstream)
    for repository, tags in table.IMAGES.items():
        for tag in tags:
            layer = random_layer(f"{repository}-{tag}", 2000)
            recipes = [Recipe(OCI, [layer], architecture) for architecture in (ELSEWHERE, HERE)]
            push_index(pusher, repository, tag, recipes)


def _settings(home: Path, url: str, listing: str) -> dict[str, object]:
    etc = home / "etc"
    return {
        "upstreams": {
            **{
                name: {"url": url}
                for name in (*BUILT_IN, *table.CONTEXT["docs/webhooks.md"]["upstreams"])
            },
            "registry.example": {"url": listing, "username": USER, "password": PASSWORD},
        },
        "admin": {"token_file": str(etc / "admin-token")},
        "bundles": {
            "signing_key_file": str(etc / "key"),
            "trusted_keys": [str(etc / "key.pub")],
        },
        "hooks": yaml.safe_load(_hooks().replace("/etc/millpond", str(etc)))["hooks"],
        "access": {
            "htpasswd_file": str(etc / "htpasswd"),
            "tokens_file": str(etc / "tokens.yaml"),
            "rules": [{"allow": "pull"}],
        },
    }


def _hooks() -> str:
    """Return the settings of docs/webhooks.md, which its commands need."""
    [found] = [block for block in every() if block.text.startswith("hooks:")]
    return found.text


def _write(home: Path) -> None:
    """Write the files that examples name, and the programs."""
    etc, bin_ = home / "etc", home / "bin"
    for folder in (etc, etc / "tls", bin_, home / "chart"):
        folder.mkdir()
    for name, text in table.FILES.items():
        (home / name).write_text(text)
    write_secrets(etc)
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (home / "users").write_text(f"{USER}:{hashed}\n")
    (home / "auth.json").write_text("{}")
    places = {name: command(name) for name in ("curl", "make", "docker", "podman", "skopeo")}
    for name, script in PROGRAMS.items():
        file = bin_ / name
        file.write_text("#!/bin/sh\n" + script.format(python=sys.executable, root=ROOT, **places))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)


def write_secrets(etc: Path) -> None:
    """Write what the settings of the examples name below /etc/millpond."""
    (etc / "tls").mkdir(exist_ok=True)
    certificate = tls.certificate(etc / "tls")
    assert certificate
    shutil.copy(etc / "tls" / "authority.pem", etc / "tls" / "fullchain.pem")
    shutil.copy(etc / "tls" / "authority.pem", etc / "clients.pem")
    (etc / "admin-token").write_text(TOKEN)
    (etc / "htpasswd").write_text("")
    (etc / "tokens.yaml").write_text("")
    for name in ("ghcr-token", "hub-token", "bucket-secret"):
        (etc / name).write_text("bot-secret")
    for name in ("key", "lab"):
        words = [command("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(etc / name)]
        subprocess.run(words, check=True)
    (etc / "hooks").mkdir()
    for name in HOOKS:
        (etc / "hooks" / name).write_text(SECRET)
    (etc / "webhook-secret").write_text(f"whsec_{base64.b64encode(b'k' * 32).decode()}")
    (etc / "denied").write_text("sha256:" + "0" * 64 + "\n")
    shutil.copy(ROOT / "tests" / "data" / "cosign" / "cosign.pub", etc / "cosign.pub")
    for file in etc.rglob("*"):
        file.chmod(0o700 if file.is_dir() else 0o600)
