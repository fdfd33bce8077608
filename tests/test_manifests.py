import json

import pytest

from proxy import manifests
from tests.fakes import content


def test_an_image_needs_its_config_and_layers() -> None:
    image = content.image(1)
    needed = manifests.children(image.manifest)
    assert {d.digest for d in needed.blobs} == set(image.blobs)
    assert not needed.manifests
    sizes = {d.digest: d.size for d in needed.blobs}
    assert sizes == {digest: len(data) for digest, data in image.blobs.items()}


def test_an_index_needs_its_manifests() -> None:
    index = content.multi_platform(1)
    needed = manifests.children(index.manifest)
    assert {d.digest for d in needed.manifests} == set(index.manifests) - {index.digest}
    assert not needed.blobs


def test_foreign_layers_are_not_needed() -> None:
    image = content.foreign_image(["https://example.com/layer"], 1)
    needed = manifests.children(image.manifest)
    foreign = {layer["digest"] for layer in json.loads(image.manifest)["layers"] if "urls" in layer}
    assert foreign
    assert not foreign & {d.digest for d in needed.blobs}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"layers": 1, "manifests": "x", "config": []}',
        b'{"layers": [{"digest": "../../etc", "size": 1}, {"digest": "sha256:x", "size": -1}, 7]}',
    ],
)
def test_what_is_not_understood_needs_nothing(body: bytes) -> None:
    assert manifests.children(body) == ((), ())


def test_media_type_from_the_document_or_its_shape() -> None:
    assert manifests.own_type(content.image(1, docker=True).manifest) == manifests.DOCKER_MANIFEST
    assert manifests.own_type(content.untyped(1).manifest) is None
    assert manifests.own_type(b'{"mediaType": "x/y\\r\\nSet-Cookie: a"}') is None
    assert manifests.implied_type(content.untyped(1).manifest) == manifests.OCI_MANIFEST
    assert manifests.implied_type(b'{"manifests": []}') == manifests.OCI_INDEX
    assert manifests.implied_type(b'{"schemaVersion": 1}') == manifests.SCHEMA1
