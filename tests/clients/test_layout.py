"""The cache directory is an OCI image layout: held images are read without a registry."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.parts.curl import Curl
from tests.parts.images import Image, Index
from tests.parts.millpond import Millpond
from tests.parts.podman import Podman
from tests.parts.process import wait_until
from tests.parts.shelf import Shelf
from tests.parts.skopeo import Skopeo


def name_of(image: Image | Index) -> str:
    """Return what an image is called in the layout."""
    return f"docker.io/{image.by_tag}"


def names_in(layout: Path) -> set[str]:
    """Return all names by which images can be read from the layout."""
    index = json.loads((layout / "index.json").read_bytes())
    key = "org.opencontainers.image.ref.name"
    return {entry.get("annotations", {}).get(key) for entry in index["manifests"]}


def hold(curl: Curl, proxy: Millpond, images: tuple[Image | Index, ...]) -> None:
    """Have images pulled, and wait until the layout names them."""
    for image in images:
        curl.pull(image.by_tag)
    wanted = {name_of(image) for image in images}
    wait_until(lambda: wanted <= names_in(proxy.storage), f"{wanted} in index.json")


def assert_the_same(copy: Path, image: Image) -> None:
    """Fail unless a copy into a directory has each byte of an image, and nothing else."""
    manifest = (copy / "manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == image.digest
    for blob in image.blobs:
        data = (copy / blob.digest.removeprefix("sha256:")).read_bytes()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == blob.digest
    assert len(list(copy.iterdir())) == len({blob.digest for blob in image.blobs}) + 2  # version


def test_skopeo_reads_every_held_image_byte_by_byte_while_the_proxy_runs(
    curl: Curl, skopeo: Skopeo, proxy: Millpond, shelf: Shelf
) -> None:
    hold(curl, proxy, shelf.common)
    for image in shelf.common:  # of the indexes, this machine's platform alone is held
        assert_the_same(skopeo.read(proxy.storage, name_of(image), "dir"), image.here)


@pytest.mark.parametrize("kind", ["oci", "docker-archive"])
def test_skopeo_reads_every_held_image_into_other_forms(
    kind: str, curl: Curl, skopeo: Skopeo, proxy: Millpond, shelf: Shelf
) -> None:
    hold(curl, proxy, shelf.common)
    for image in shelf.common:
        assert skopeo.read(proxy.storage, name_of(image), kind).exists()


def test_podman_pulls_every_held_image_from_the_directory(
    curl: Curl, podman: Podman, proxy: Millpond, shelf: Shelf
) -> None:
    hold(curl, proxy, shelf.common)
    # Podman makes a name of the path, and not every name of a temporary directory can be one.
    plain = Path(f"/tmp/millpond-layout-{os.getpid()}")
    plain.symlink_to(proxy.storage)
    try:
        for image in shelf.common:
            config = podman.pull_from(f"oci:{plain}:{name_of(image)}")
            assert config == image.here.config.digest
            podman.forget()
    finally:
        plain.unlink()


def test_a_stopped_proxy_leaves_a_layout_that_is_read_as_well(
    curl: Curl, skopeo: Skopeo, proxy: Millpond, shelf: Shelf
) -> None:
    hold(curl, proxy, (shelf.tiny,))
    curl.pull(shelf.app.by_tag)
    proxy.restart()  # what came last is named at the latest now
    hold(curl, proxy, (shelf.tiny, shelf.app))
    proxy.kill()
    try:
        assert_the_same(skopeo.read(proxy.storage, name_of(shelf.app), "dir"), shelf.app)
    finally:
        proxy.start()


def test_what_was_pulled_by_digest_is_read_by_digest(
    curl: Curl, skopeo: Skopeo, proxy: Millpond, shelf: Shelf
) -> None:
    image = shelf.tool
    curl.pull(image.by_digest)
    name = f"docker.io/{image.by_digest}"
    wait_until(lambda: name in names_in(proxy.storage), f"{name} in index.json")
    assert_the_same(skopeo.read(proxy.storage, name, "dir"), image)
