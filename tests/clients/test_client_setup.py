"""`millpond client` with real clients: written files work, and a client that bypasses is found out."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Done
from tests.parts import helm as helm_part
from tests.parts.clients import Clients
from tests.parts.containerd import Containerd
from tests.parts.docker import Docker
from tests.parts.helm import HELM
from tests.parts.images import Image
from tests.parts.millpond import REPOSITORY_ROOT, Millpond
from tests.parts.podman import POLICY, Podman
from tests.parts.process import PATH, command, hermetic, workdir
from tests.parts.push import Pusher
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf

Binds = dict[Path, str]


def client(proxy: Millpond, *words: str) -> list[str]:
    address = ("--address", proxy.url, "--upstream", "docker.io")
    return [sys.executable, "-m", "proxy", "client", *words, *address]


def run(argv: list[str], environment: dict[str, str], binds: Binds | None = None) -> Done:
    """Run a command, where some directories are in the places of those of the system."""
    mounts = [f"mount --bind {source} {place}" for source, place in (binds or {}).items()]
    script = " && ".join([*mounts, 'exec "$@"'])
    return subprocess.run(
        [command("unshare"), "--mount", "sh", "-c", script, "sh", *argv],
        cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def write(proxy: Millpond, name: str, root: Path) -> Done:
    return run(client(proxy, name, "--write", "--yes", "--root", str(root)), hermetic(root))


@pytest.fixture
def tiny(shelf: Shelf) -> str:
    return f"docker.io/{shelf.tiny.by_tag}"


@pytest.fixture
def root() -> Iterator[Path]:
    with workdir("setup") as folder:
        yield folder


@pytest.fixture
def configured(docker: Docker) -> Iterator[Docker]:
    """A docker whose settings may be changed."""
    before = docker.settings.read_text()
    yield docker
    docker.settings.write_text(before)
    docker.reload()


def test_c24_docker(configured: Docker, proxy: Millpond, upstream: Registry, tiny: str) -> None:
    check = client(proxy, "docker", "--check", "--image", tiny)
    settings = json.loads(configured.settings.read_text())
    settings["registry-mirrors"] = [upstream.url]
    configured.settings.write_text(json.dumps(settings))
    configured.reload()
    elsewhere = run(check, configured.env)
    assert elsewhere.returncode == 1, elsewhere
    assert "without Millpond: it bypasses the mirror" in elsewhere.stderr

    written = write(proxy, "docker", configured.root)
    assert written.returncode == 0, written
    assert "systemctl reload docker" in written.stdout
    assert write(proxy, "docker", configured.root).stdout == "nothing to change\n"
    merged = json.loads(configured.settings.read_text())
    assert merged == settings | {"registry-mirrors": [proxy.url, upstream.url]}
    configured.reload()
    used = run(check, configured.env)
    assert (used.returncode, used.stderr) == (0, ""), used
    assert f"docker pulled {tiny} through Millpond" in used.stdout
    configured.forget()

    (configured.root / "build").mkdir(exist_ok=True)
    (configured.root / "build" / "Dockerfile").write_text(f"FROM {tiny}\n")
    before = proxy.stats()["total"]["requests"]
    configured.build(configured.root / "build")
    assert proxy.stats()["total"]["requests"] > before


@pytest.fixture
def apart(podman: Podman, root: Path) -> tuple[dict[str, str], Binds]:
    """An environment and places of directories in which podman has files of its own."""
    folder = root / "etc" / "containers"
    folder.mkdir(parents=True)
    (folder / "policy.json").write_text(json.dumps(POLICY))
    libraries = root / "lib"
    libraries.mkdir()
    binds = {folder: "/etc/containers", libraries: "/var/lib"}
    environment = podman.env | {"PATH": PATH}
    del environment["CONTAINERS_REGISTRIES_CONF"]
    return environment, binds


@pytest.mark.parametrize("name", ["podman", "skopeo"])
def test_c24_containers_image(
    apart: tuple[dict[str, str], Binds], proxy: Millpond, upstream: Registry, tiny: str, name: str
) -> None:
    environment, binds = apart
    [folder, _] = binds
    root = folder.parents[1]
    check = client(proxy, name, "--check", "--image", tiny)

    assert write(proxy, name, root).returncode == 0
    assert write(proxy, name, root).stdout == "nothing to change\n"
    used = run(check, environment, binds)
    assert used.returncode == 0, used
    assert f"{name} pulled {tiny} through Millpond" in used.stdout

    drop_in = folder / "registries.conf.d" / "50-millpond.conf"
    text = drop_in.read_text()
    drop_in.write_text(text.replace(f"{proxy.address}/docker.io", upstream.url.partition("//")[2]))
    elsewhere = run(check, environment, binds)
    assert elsewhere.returncode == 1, elsewhere
    assert "bypasses the mirror" in elsewhere.stderr


def test_c24_containerd(
    clients: Clients, proxy: Millpond, upstream: Registry, tiny: str, root: Path
) -> None:
    containerd = clients["containerd"]
    assert isinstance(containerd, Containerd)
    folder = root / "etc" / "containerd"
    folder.mkdir(parents=True)
    config = folder / "config.toml"
    config.write_text(Path("/etc/containerd/config.toml").read_text())
    assert write(proxy, "containerd", root).returncode == 0
    assert write(proxy, "containerd", root).stdout == "nothing to change\n"
    dump = run(["containerd", "--config", str(config), "config", "dump"], hermetic(root))
    assert 'config_path = "/etc/containerd/certs.d"' in dump.stdout, dump

    binds = {folder: "/etc/containerd"}
    check = client(proxy, "containerd", "--check", "--image", tiny)
    used = run(check, containerd.env, binds)
    assert used.returncode == 0, used
    assert f"ctr pulled {tiny} through Millpond" in used.stdout
    hosts = folder / "certs.d" / "docker.io" / "hosts.toml"
    hosts.write_text(hosts.read_text().replace(proxy.url, upstream.url))
    elsewhere = run(check, containerd.env, binds)
    assert elsewhere.returncode == 1, elsewhere
    assert "bypasses the mirror" in elsewhere.stderr


def test_c24_helm(proxy: Millpond, upstream: Registry, root: Path) -> None:
    helm_part.push_chart(Pusher(upstream), "org/charts/setup", "1.0.0")
    environment = hermetic(root, PATH=f"{HELM.parent}:{PATH}")
    chart = ("--image", "docker.io/org/charts/setup:1.0.0")
    used = run(client(proxy, "helm", "--check", *chart), environment)
    assert used.returncode == 0, used
    missing = run(client(proxy, "helm", "--check", "--image", "docker.io/org/none:1"), environment)
    assert missing.returncode == 1, missing
    assert "cannot pull" in missing.stderr


def test_a_check_leaves_the_client_as_it_was(
    docker: Docker, proxy: Millpond, shelf: Shelf, tiny: str
) -> None:
    def images() -> set[str]:
        listed = run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"], docker.env)
        return set(listed.stdout.split())

    check = client(proxy, "docker", "--check", "--image", tiny)
    assert run(check, docker.env).returncode == 0
    assert images() == set()
    assert isinstance(shelf.tiny, Image)
    docker.pull(shelf.tiny.by_tag)
    assert run(check, docker.env).returncode == 0
    assert images() == {"tiny:latest"}


def test_a_registry_that_cannot_be_reached_is_no_bypass(
    docker: Docker, proxy: Millpond, upstream: Registry, tiny: str
) -> None:
    upstream.stop()
    try:
        failed = run(client(proxy, "docker", "--check", "--image", tiny), docker.env)
    finally:
        upstream.start()
    assert failed.returncode == 1, failed
    assert "docker cannot pull" in failed.stderr
