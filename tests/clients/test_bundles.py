"""Images are carried into a lab without a network, and every client pulls them there."""

import json
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.parts import curl, lab
from tests.parts.docker import Docker
from tests.parts.images import DOCKER, Image, Index
from tests.parts.millpond import Millpond, running
from tests.parts.podman import Podman
from tests.parts.process import Daemon, command, free_port, hermetic, listens, workdir
from tests.parts.push import Pusher, Recipe, push_image, random_layer
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf
from tests.parts.skopeo import Skopeo

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def home() -> Iterator[Path]:
    """The lab's directory, with a short name."""
    with workdir("lab") as root:
        yield root


def warmed(proxy: Millpond, names: list[str], *options: str) -> None:
    done = lab.run(proxy, "warm", *names, *options)
    assert done["status"] == 0, done


def exported(proxy: Millpond, path: Path, *arguments: str) -> None:
    key = path.parent / "key"
    if not key.exists():
        subprocess.run(
            [command("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True
        )
    done = lab.run(proxy, "export", *arguments, "-o", str(path), "--key", str(key))
    assert done["status"] == 0, done


def imported(path: Path) -> list[str]:
    return ["import", str(path), "--trust", str(path.parent / "key.pub")]


def assert_pulled(found: dict[str, dict[str, str]], images: tuple[Image | Index, ...]) -> None:
    """Fail unless every client got every image; skopeo copies this machine's platform."""
    assert set(found) == set(lab.PULLING)
    for client, pulled in found.items():
        expected = {
            image.by_tag: image.here.digest if client == "skopeo" else image.digest
            for image in images
        }
        assert pulled == expected, client


def test_a_lab_without_a_network_gets_images_and_then_what_has_changed(
    proxy: Millpond, upstream: Registry, shelf: Shelf, home: Path, tmp_path: Path
) -> None:
    names = [image.by_tag for image in shelf.common]
    warmed(proxy, names)
    exported(proxy, tmp_path / "all.tar", *names)
    found = lab.visit(home, [imported(tmp_path / "all.tar"), ["inventory"]], names)
    first, inventory = found["outputs"]
    assert first["status"] == 0, first
    assert_pulled(found["pulled"], shelf.common)
    (tmp_path / "lab.inv").write_text(inventory["out"])

    layers = [random_layer(f"library/app-{size}", size) for size in (1000, 64_000, 1_000_000)]
    fresh = random_layer("library/app-changed", 700_000)
    newer = push_image(Pusher(upstream), "library/app", "next", Recipe(DOCKER, [*layers, fresh]))
    warmed(proxy, ["library/app:next"])
    delta = tmp_path / "delta.tar"
    exported(proxy, delta, "library/app:next", "--missing-from", str(tmp_path / "lab.inv"))
    with tarfile.open(delta) as archive:
        carried = {m.name.rpartition("/")[2]: m.size for m in archive if "blobs/" in m.name}
    old = {blob.digest for image in shelf.common for blob in image.here.blobs}
    changed = {b.digest.partition(":")[2]: b.size for b in newer.blobs if b.digest not in old}
    manifest = newer.digest.partition(":")[2]
    assert {name: size for name, size in carried.items() if name in changed} == changed
    assert sum(carried.values()) < sum(changed.values()) + 10_000, "a manifest and its index"
    assert manifest in carried

    found = lab.visit(home, [imported(delta)], ["library/app:next", "library/app:3.12"])
    assert found["outputs"][0]["status"] == 0, found
    for client, pulled in found["pulled"].items():
        assert pulled["library/app:next"] == newer.digest, client
        assert pulled["library/app:3.12"] == shelf.app.digest, client


def test_other_tools_read_a_bundle(
    proxy: Millpond, shelf: Shelf, skopeo: Skopeo, podman: Podman, tmp_path: Path
) -> None:
    names = [image.by_tag for image in shelf.common]
    warmed(proxy, names)
    exported(proxy, tmp_path / "all.tar", *names)
    for image in shelf.common:
        source = f"oci-archive:{tmp_path / 'all.tar'}:docker.io/{image.by_tag}"
        skopeo.read_from(source)
        config = podman.pull_from(source)
        assert config == image.here.config.digest
        podman.forget()


def test_docker_loads_a_bundle(
    proxy: Millpond, shelf: Shelf, docker: Docker, tmp_path: Path
) -> None:
    warmed(proxy, [shelf.shell.by_tag, shelf.multi.by_tag])
    exported(proxy, tmp_path / "all.tar", shelf.shell.by_tag, shelf.multi.by_tag)
    said = docker.load(tmp_path / "all.tar")
    assert "shell:latest" in said
    assert docker.run(shelf.shell.by_tag.removeprefix("library/")) == "ripples\n"


@pytest.mark.parametrize("seed", range(3))
def test_an_import_that_is_killed_is_done_again(
    proxy: Millpond, shelf: Shelf, tmp_path: Path, seed: int
) -> None:
    """The server dies at some moment, then another time; the third import ends right."""
    images = (shelf.app, shelf.big)
    bundle = tmp_path / "big.tar"
    warmed(proxy, [image.by_tag for image in images])
    exported(proxy, bundle, *(image.by_tag for image in images))
    dice = random.Random(seed)
    with running(lab.NOWHERE, extra={"offline": True}) as home:
        for _ in range(2):
            words = [
                sys.executable,
                "-m",
                "proxy",
                *imported(bundle),
                "--storage",
                str(home.storage),
            ]
            importing = subprocess.Popen(words, cwd=lab.REPOSITORY_ROOT, stderr=subprocess.PIPE)
            time.sleep(dice.uniform(0.5, 2.5))
            home.kill()
            importing.communicate(timeout=60)
            home.start()
            with curl.running(home.address) as client:
                for image in images:
                    reply = client.get(f"{image.repository}/manifests/{image.tag}")
                    if reply.status == 200:  # the server may die after the last step
                        assert client.pull(image.by_tag) == image.digest
                    else:
                        assert (reply.status, bool(importing.returncode)) == (404, True)
        done = lab.run(home, *imported(bundle))
        assert done["status"] == 0, done
        with curl.running(home.address) as client:
            for image in images:
                assert client.pull(image.by_tag) == image.digest


@pytest.fixture
def rival(upstream: Registry) -> Iterator[tuple[str, Path]]:
    """Debian's docker-registry as a pull-through cache: its address, and its storage."""
    with workdir("rival") as root:
        port = free_port()
        settings = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(root / "storage")}},
            "http": {"addr": f"127.0.0.1:{port}", "secret": "tests"},
            "proxy": {"remoteurl": upstream.url},
        }
        config = root / "registry.yaml"
        config.write_text(yaml.safe_dump(settings))
        argv = ["docker-registry", "serve", str(config)]
        daemon = Daemon(argv, hermetic(root), root / "registry.log")
        daemon.start(lambda: listens(port))
        try:
            yield f"127.0.0.1:{port}", root / "storage"
        finally:
            daemon.stop()


def test_the_cache_of_another_registry_is_taken_over(
    rival: tuple[str, Path], shelf: Shelf, home: Path
) -> None:
    address, storage = rival
    with curl.running(address) as client:
        for image in shelf.common:
            client.pull(image.by_tag)
    names = [image.by_tag for image in shelf.common]
    found = lab.visit(home, [["import", str(storage), "--insecure"]], names)
    assert found["outputs"][0]["status"] == 0, found
    assert_pulled(found["pulled"], shelf.common)


def test_a_hosted_registry_is_taken_over(upstream: Registry, shelf: Shelf, home: Path) -> None:
    words = ["import", str(upstream.storage), "--insecure", "--json"]
    found = lab.visit(home, [words, ["ls", "--json"]], [])
    report, listed = found["outputs"]
    assert report["status"] == 0, report
    held = {line["name"]: line for line in map(json.loads, listed["out"].splitlines())}
    for image in shelf.common:
        assert held[f"docker.io/{image.by_tag}"]["digest"] == image.digest
        assert held[f"docker.io/{image.by_tag}"]["state"] == "whole"


def test_an_archive_of_docker_save_is_imported(
    proxy: Millpond,
    shelf: Shelf,
    docker: Docker,
    home: Path,
    tmp_path: Path,
) -> None:
    docker.pull(shelf.shell.by_tag)
    docker.save(tmp_path / "saved.tar", "shell:latest")
    words = ["import", str(tmp_path / "saved.tar"), "--insecure"]
    found = lab.visit(home, [words], [shelf.shell.by_tag])
    assert found["outputs"][0]["status"] == 0, found
    assert len(set(found["pulled"]["containerd"].values())) == 1
