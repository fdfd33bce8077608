"""A cache on a file system of 64 MB that others fill to the brim while clients pull through it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.parts import millpond
from tests.parts.client import Client
from tests.parts.clients import Clients
from tests.parts.curl import Curl
from tests.parts.images import Image, Index
from tests.parts.millpond import Millpond
from tests.parts.mounts import Others, tmpfs
from tests.parts.process import wait_until, workdir
from tests.parts.registry import Registry
from tests.parts.shelf import KB, MB, Shelf

SIZE = 64 * 1024**2
ROOMS = (0, 40 * KB, 3 * MB, 300 * KB, 12 * MB)


class Cramped(NamedTuple):
    """A cache and those who share its disk."""

    proxy: Millpond
    others: Others
    storage: Path
    upstream: Registry

    @property
    def errors(self) -> int:
        """How often the storage has failed so far."""
        counted: int = self.proxy.stats()["cache"]["storage_errors"]
        return counted

    @property
    def files(self) -> int:
        """How many blobs and manifests it knows that it holds."""
        counted: int = self.proxy.stats()["cache"]["files"]
        return counted

    def fetched(self, image: Image, since: int) -> set[str]:
        """Return which blobs of an image came from upstream since the mark."""
        asked = {request.ref for request in self.upstream.since(since) if request.is_content}
        return asked & {blob.digest for blob in image.blobs}


@pytest.fixture
def min_free() -> str:
    """What the cache leaves to others; nothing, so that it is the disk that refuses."""
    return "0"


@pytest.fixture
def cramped(upstream: Registry, shelf: Shelf, port: int, min_free: str) -> Iterator[Cramped]:
    with workdir("cramped") as root, tmpfs(root / "disk", SIZE) as disk:
        storage = disk / "storage"
        settings = {"storage": {"path": str(storage), "max_size": "5GiB", "min_free": min_free}}
        with millpond.running(upstream.url, port, settings) as running:
            yield Cramped(running, Others(disk), storage, upstream)
            sys.stdout.write(running.log()[-20_000:])  # pytest shows it when the test failed


def pulls(client: Client, image: Image | Index) -> bool:
    """Tell whether the client gets the image that it asks for; every client hashes what comes."""
    digest = client.pull(image.by_tag)
    client.forget()
    return digest in {image.digest, image.here.digest}


def test_every_client_pulls_while_others_fill_the_disk(
    client: Client, cramped: Cramped, shelf: Shelf
) -> None:
    before = cramped.errors
    with cramped.others.restless(ROOMS):
        for _ in ("cold", "again"):
            for image in shelf.common:
                assert pulls(client, image), image.by_tag
    cramped.others.take_all()
    assert pulls(client, shelf.shell)
    assert cramped.errors > before


def test_what_does_not_fit_the_disk_passes_through(
    clients: Clients, cramped: Cramped, shelf: Shelf
) -> None:
    for name in ("curl", "docker"):
        assert pulls(clients[name], shelf.big)  # 200 MB
    assert cramped.errors > 0


@pytest.mark.parametrize("min_free", ["25%"])
def test_what_is_to_be_left_to_others_is_left(
    min_free: str, curl: Curl, cramped: Cramped, shelf: Shelf
) -> None:
    cramped.others.take_all()
    cramped.others.leave(SIZE // 4 + 6 * MB)
    for image in (*shelf.common, shelf.shell):  # some 20 MB, one layer of 8 among them
        assert pulls(curl, image)
        assert cramped.others.free >= SIZE // 4 - MB  # that much is the index's
    assert cramped.files > 0


def test_when_there_is_room_again_it_keeps_again(
    curl: Curl, cramped: Cramped, shelf: Shelf
) -> None:
    cramped.others.take_all()
    assert pulls(curl, shelf.tool)
    cramped.others.leave(30 * MB)
    for image in (shelf.app, shelf.multi):
        assert pulls(curl, image)
        wait_until(lambda: not cramped.proxy.stats()["downloads"], "the downloads to be kept")
        before = cramped.upstream.mark()
        assert pulls(curl, image)
        assert not cramped.fetched(image.here, before)


@pytest.mark.parametrize("end", [Millpond.stop, Millpond.kill], ids=["stopped", "killed"])
@pytest.mark.parametrize("held", [True, False], ids=["something-held", "empty"])
def test_it_starts_and_serves_on_a_disk_without_a_byte_left(
    held: bool, end: Callable[[Millpond], object], curl: Curl, cramped: Cramped, shelf: Shelf
) -> None:
    if held:
        assert pulls(curl, shelf.app)
        wait_until(lambda: not cramped.proxy.stats()["downloads"], "the downloads to be kept")
    before = cramped.files
    assert bool(before) == held
    cramped.others.take_all()
    end(cramped.proxy)
    cramped.others.take_all()  # what its end gave back
    cramped.proxy.start()
    wait_until(lambda: cramped.files >= before, "what is held to be known")
    mark = cramped.upstream.mark()
    assert pulls(curl, shelf.app)
    assert held != bool(cramped.fetched(shelf.app, mark))
    for image in (shelf.tiny, shelf.multi, shelf.dlist):
        assert pulls(curl, image)


def test_a_first_start_without_a_byte_left_is_refused_and_leaves_nothing_in_the_way(
    curl: Curl, cramped: Cramped, shelf: Shelf
) -> None:
    cramped.proxy.stop()
    shutil.rmtree(cramped.storage)
    cramped.others.take_all()
    with pytest.raises(AssertionError, match="cannot be used: the disk is full"):
        cramped.proxy.start()
    cramped.others.leave(30 * MB)
    cramped.proxy.start()
    for image in shelf.common:
        assert pulls(curl, image)
