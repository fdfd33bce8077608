"""The last proof of an image: it runs."""

from pathlib import Path

import pytest

from tests.parts.client import PullError
from tests.parts.docker import Docker
from tests.parts.millpond import Millpond
from tests.parts.shelf import Shelf, busybox


def test_a_pulled_image_runs(docker: Docker, proxy: Millpond, shelf: Shelf, tmp_path: Path) -> None:
    tarball = tmp_path / "busybox.tar.gz"
    tarball.write_bytes(busybox().data)
    docker.import_image(tarball, "probe")
    try:
        assert docker.run("probe", "/bin/busybox", "echo", "able") == "able\n"
    except PullError as unable:
        pytest.skip(f"this machine runs no containers, not even a local image: {unable}")

    docker.pull(shelf.shell.by_tag)
    assert docker.run(shelf.shell.by_tag) == "ripples\n"
