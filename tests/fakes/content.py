"""Deterministic images, indexes and artifacts with real JSON manifests.

The same arguments always give the same bytes, thus the same digests. Layers are opaque bytes: a
registry never looks into them.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})

Seed = int | str
Document = dict[str, Any]


def blob(size: int, seed: Seed = 0) -> bytes:
    """`size` bytes which look random and depend on nothing but the arguments."""
    return random.Random(f"blob {seed}").randbytes(size)


def digest(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of `data` as `algorithm:hex`."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def encode(document: Document) -> bytes:
    """JSON as registries hold it: indented, so that re-encoding it would change the digest."""
    return json.dumps(document, indent=3).encode()


@dataclass(frozen=True, kw_only=True)
class Image:
    """One manifest that names blobs: an image, an artifact or a thing nobody knows."""

    manifest: bytes
    media_type: str
    blobs: Mapping[str, bytes]
    algorithm: str = "sha256"
    platform: str | None = None

    @property
    def digest(self) -> str:
        """The digest of the manifest's exact bytes."""
        return digest(self.manifest, self.algorithm)

    @property
    def manifests(self) -> "dict[str, Image | Index]":
        """Every manifest to be stored to hold this: itself alone."""
        return {self.digest: self}

    @property
    def descriptor(self) -> Document:
        """How an index lists it."""
        return _descriptor(self.media_type, self.manifest, self.algorithm) | _platform(
            self.platform
        )

    @property
    def config(self) -> str:
        """The digest of the config blob."""
        return str(json.loads(self.manifest)["config"]["digest"])

    @property
    def layers(self) -> list[str]:
        """The digests of the layers, lowest first."""
        return [layer["digest"] for layer in json.loads(self.manifest).get("layers", [])]


@dataclass(frozen=True, kw_only=True)
class Index:
    """One manifest that names manifests."""

    manifest: bytes
    media_type: str
    children: "tuple[Image | Index, ...]" = field(default=())
    algorithm: str = "sha256"

    @property
    def digest(self) -> str:
        """The digest of the index's exact bytes."""
        return digest(self.manifest, self.algorithm)

    @property
    def manifests(self) -> "dict[str, Image | Index]":
        """Every manifest to be stored to hold this: itself and all below."""
        found: dict[str, Image | Index] = {self.digest: self}
        for child in self.children:
            found |= child.manifests
        return found

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """The blobs of all manifests below."""
        found: dict[str, bytes] = {}
        for child in self.children:
            found |= child.blobs
        return found

    @property
    def descriptor(self) -> Document:
        """How another index lists it."""
        return _descriptor(self.media_type, self.manifest, self.algorithm)


Content = Image | Index


def image(
    seed: Seed = 0,
    layers: Iterable[int] = (1024, 2048),
    *,
    docker: bool = False,
    platform: str = "linux/amd64",
    algorithm: str = "sha256",
) -> Image:
    """An image with layers of the given sizes, as OCI or as docker schema 2."""
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    bodies = [blob(size, f"{seed} {place}") for place, size in enumerate(layers)]
    config = _config(platform, bodies)
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, config, algorithm),
        "layers": [
            _descriptor(DOCKER_LAYER if docker else OCI_LAYER, body, algorithm) for body in bodies
        ],
    }
    return Image(
        manifest=encode(document),
        media_type=media_type,
        blobs={digest(body, algorithm): body for body in (config, *bodies)},
        algorithm=algorithm,
        platform=platform,
    )


def index(*children: Content, docker: bool = False, algorithm: str = "sha256") -> Index:
    """An OCI index or a docker manifest list of `children`."""
    media_type = DOCKER_LIST if docker else OCI_INDEX
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [child.descriptor for child in children],
    }
    return Index(
        manifest=encode(document), media_type=media_type, children=children, algorithm=algorithm
    )


def multi_platform(
    seed: Seed = 0,
    platforms: Iterable[str] = ("linux/amd64", "linux/arm64/v8"),
    layers: Iterable[int] = (1024, 2048),
    *,
    docker: bool = False,
) -> Index:
    """One image per platform, and the index of them."""
    sizes = tuple(layers)
    made = (image(f"{seed} {name}", sizes, docker=docker, platform=name) for name in platforms)
    return index(*made, docker=docker)


def nested_index(seed: Seed = 0) -> Index:
    """An index which lists an index and an image."""
    return index(multi_platform(f"{seed} inner"), image(f"{seed} outer", platform="linux/s390x"))


def artifact(
    subject: Content | None = None,
    artifact_type: str = "application/vnd.example.sbom.v1",
    *,
    payload: bytes = b'{"packages":[]}',
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """An artifact (SBOM, signature) with the empty config, about `subject` if one is given."""
    document: Document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": _descriptor(OCI_EMPTY, b"{}"),
        "layers": [_descriptor(artifact_type, payload)],
    }
    if subject is not None:
        document["subject"] = _descriptor(subject.media_type, subject.manifest, subject.algorithm)
    if annotations:
        document["annotations"] = dict(annotations)
    return Image(
        manifest=encode(document),
        media_type=OCI_MANIFEST,
        blobs={digest(body): body for body in (b"{}", payload)},
    )


def unknown(seed: Seed = 0) -> Image:
    """A manifest of a media type that no client or proxy has heard of."""
    media_type = "application/vnd.example.thing.v3+json"
    return Image(
        manifest=encode({"mediaType": media_type, "thing": str(seed)}),
        media_type=media_type,
        blobs={},
    )


def foreign_image(urls: Iterable[str], seed: Seed = 0, *, docker: bool = False) -> Image:
    """An image whose first layer lies at `urls` and, as is usual, not in the registry."""
    plain = image(seed, docker=docker)
    away = blob(512, f"{seed} foreign")
    media_type = DOCKER_FOREIGN_LAYER if docker else OCI_FOREIGN_LAYER
    document = json.loads(plain.manifest)
    document["layers"].insert(0, _descriptor(media_type, away) | {"urls": list(urls)})
    return Image(manifest=encode(document), media_type=plain.media_type, blobs=plain.blobs)


def untyped(seed: Seed = 0) -> Image:
    """An OCI image whose manifest has no `mediaType` field, which the spec allows."""
    plain = image(seed)
    document = json.loads(plain.manifest)
    del document["mediaType"]
    return Image(manifest=encode(document), media_type=plain.media_type, blobs=plain.blobs)


def oversized(size: int = 5 * 1024 * 1024, seed: Seed = 0) -> Image:
    """An image whose manifest, padded by an annotation, is longer than `size` bytes."""
    plain = image(seed)
    document = json.loads(plain.manifest) | {"annotations": {"padding": "x" * size}}
    return Image(manifest=encode(document), media_type=plain.media_type, blobs=plain.blobs)


def schema1(name: str = "library/old", tag: str = "latest", seed: Seed = 0) -> Image:
    """A docker schema 1 manifest (its signature is no real one)."""
    layer = blob(700, f"{seed} schema1")
    document = {
        "schemaVersion": 1,
        "name": name,
        "tag": tag,
        "architecture": "amd64",
        "fsLayers": [{"blobSum": digest(layer)}],
        "history": [{"v1Compatibility": '{"id":"e45a5af57b00"}'}],
        "signatures": [{"header": {"alg": "ES256"}, "signature": "AA", "protected": "AA"}],
    }
    return Image(manifest=encode(document), media_type=DOCKER_SCHEMA1, blobs={digest(layer): layer})


def _descriptor(media_type: str, data: bytes, algorithm: str = "sha256") -> Document:
    return {"mediaType": media_type, "digest": digest(data, algorithm), "size": len(data)}


def _platform(name: str | None) -> Document:
    if name is None:
        return {}
    keys = ("os", "architecture", "variant")
    return {"platform": dict(zip(keys, name.split("/"), strict=False))}


def _config(platform: str, layers: list[bytes]) -> bytes:
    system, architecture, *_ = platform.split("/")
    rootfs = {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}
    return encode({"architecture": architecture, "os": system, "config": {}, "rootfs": rootfs})
