"""The parser of manifests for policies."""

import json
from typing import Any

import pytest

from proxy.policies.outline import platform_of, read_outline
from tests.fakes import content
from tests.policies import signing

IMAGE = content.image(1, layers=(1000, 2000))
INDEX = content.multi_platform(2)


def outline(document: dict[str, Any]) -> Any:
    return read_outline(content.encode(document))


def test_an_image() -> None:
    found = read_outline(IMAGE.manifest)
    assert found is not None
    assert not found.is_index
    assert found.types == (content.OCI_CONFIG,)
    assert found.size == sum(map(len, IMAGE.blobs.values()))
    assert found.listed == set(IMAGE.blobs)
    assert not found.is_inert
    assert not found.has_subject


def test_an_index() -> None:
    found = read_outline(INDEX.manifest)
    assert found is not None
    assert found.is_index
    assert found.is_inert
    assert found.manifests == tuple(child.digest for child in INDEX.children)
    assert found.listed == frozenset()


def test_a_layer_that_is_listed_twice_counts_once_with_its_larger_size() -> None:
    document = json.loads(IMAGE.manifest)
    layer = document["layers"][0]
    document["layers"].append(layer | {"size": layer["size"] + 5})
    document["layers"].append(layer | {"urls": ["https://elsewhere.example"]})
    found = outline(document)
    assert found.size == sum(map(len, IMAGE.blobs.values())) + 5


def test_attachments_are_inert() -> None:
    for attachment in (content.artifact(IMAGE), signing.simple((b"{}", "AA"))):
        found = read_outline(attachment.manifest)
        assert found is not None
        assert found.is_inert


@pytest.mark.parametrize(
    "media_type",
    [
        content.OCI_LAYER,
        content.DOCKER_LAYER,
        content.OCI_LAYER.upper(),
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        "application/wasm",
        "application/octet-stream",
    ],
)
def test_what_clients_run_is_not_inert(media_type: str) -> None:
    artifact = json.loads(content.artifact(IMAGE).manifest)
    artifact["layers"].append(artifact["layers"][0] | {"mediaType": media_type})
    assert not outline(artifact).is_inert


def test_an_image_without_layers_is_not_inert() -> None:
    assert not outline(json.loads(IMAGE.manifest) | {"layers": []}).is_inert


def test_the_empty_configuration_of_an_artifact_has_no_type() -> None:
    assert outline(json.loads(content.artifact(IMAGE).manifest)).types == (
        "application/vnd.example.sbom.v1",
    )
    both = json.loads(IMAGE.manifest) | {"artifactType": "x/y"}
    assert outline(both).types == ("x/y", content.OCI_CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"manifests": []},
        {"fsLayers": []},
        {"Config": {}},
        {"LAYERS": []},
        {"layer\u017f": []},
        {"layers": {}},
        {"layers": [1]},
        {"config": None},
        {"config": {"digest": "sha256:0", "size": 1, "mediaType": "x/y"}},
    ],
    ids=str,
)
def test_what_is_not_clear_is_not_understood(change: dict[str, Any]) -> None:
    assert outline(json.loads(IMAGE.manifest) | change) is None


def test_a_descriptor_with_two_sizes_is_not_understood() -> None:
    document = json.loads(IMAGE.manifest)
    document["layers"][0]["Size"] = 10**12
    assert outline(document) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"{}", b'{"schemaVersion":2}', b"\xff"])
def test_what_is_no_manifest_is_not_understood(body: bytes) -> None:
    assert read_outline(body) is None


@pytest.mark.parametrize(
    ("config", "platform"),
    [
        ({"os": "linux", "architecture": "amd64"}, "linux/amd64"),
        ({"os": "linux", "architecture": "arm", "variant": "v7"}, "linux/arm/v7"),
        ({"os": "linux", "architecture": "amd64", "variant": ""}, "linux/amd64"),
        ({"os": "linux"}, ""),
        ({"os": "", "architecture": ""}, ""),
        ({"os": ["linux"], "architecture": "amd64"}, ""),
        ({"os": "linux", "architecture": "amd64", "Architecture": "s390x"}, ""),
        ({}, ""),
    ],
)
def test_the_platform_of_a_configuration(config: dict[str, Any], platform: str) -> None:
    assert platform_of(json.dumps(config).encode()) == platform
