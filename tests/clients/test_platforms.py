"""Multi-platform images: a client gets its own platform and upstream is asked for no other."""

import hashlib
from pathlib import Path

import pytest

from tests.parts.client import Client
from tests.parts.images import Index
from tests.parts.millpond import Millpond
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf
from tests.parts.skopeo import Skopeo


@pytest.fixture(params=["multi", "dlist"])
def index(shelf: Shelf, request: pytest.FixtureRequest) -> Index:
    found = getattr(shelf, request.param)
    assert isinstance(found, Index)
    return found


def digest_of(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def test_no_other_platform_is_downloaded(
    client: Client, index: Index, proxy: Millpond, upstream: Registry
) -> None:
    before = upstream.mark()
    assert client.pull(index.by_tag) in {index.digest, index.here.digest}
    fetched = {request.ref for request in upstream.since(before) if request.is_content}
    ours = {index.here.digest, *(blob.digest for blob in index.here.blobs)}
    theirs = {index.elsewhere.digest, *(blob.digest for blob in index.elsewhere.blobs)}
    assert ours <= fetched
    assert not fetched & (theirs - ours)


def test_all_platforms_arrive_byte_for_byte(skopeo: Skopeo, index: Index, proxy: Millpond) -> None:
    expected = {index.digest}
    for image in index.images:
        expected |= {image.digest, *(blob.digest for blob in image.blobs)}
    for _ in ("cold", "warm"):
        copied = skopeo.copy_all(index.by_tag)
        assert {digest_of(file) for file in copied.iterdir() if file.name != "version"} == expected
        skopeo.forget()


def test_inspect_tells_what_upstream_holds(skopeo: Skopeo, index: Index, proxy: Millpond) -> None:
    said = skopeo.inspect(index.by_tag)
    assert said["Digest"] == index.digest
    assert said["Layers"] == [layer.digest for layer in index.here.layers]
    assert said["RepoTags"] == [index.tag]
