"""Parses manifests for policies. Stricter than ``core.manifests``: clients must read the same.

Ambiguous manifests are not understood: one that is both an image and an index (CVE-2021-41190), or
one with keys that differ from the specification's only in their case, because Go's parser treats
them as equal.
"""

from dataclasses import dataclass
from typing import Final

from proxy.core.manifests import MAX_LISTED, read_descriptor
from proxy.core.names import Digest
from proxy.core.records import Descriptor
from proxy.core.tolerant_json import read_object

RUN_AS_IMAGES: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        "application/octet-stream",
        "application/json",
        "text/html",
    }
)
"""Types of configurations that Docker accepts as an image's (moby ``distribution/pull_v2.go``)."""

_EMPTY: Final = "application/vnd.oci.empty.v1+json"
_RUNNABLE: Final = (
    *("application/vnd.oci.image.", "application/vnd.docker.", "application/octet-stream"),
    *("application/vnd.cncf.helm.", "application/vnd.wasm.", "application/wasm"),
    *("application/x-tar", "application/gzip", "application/tar", "application/zstd"),
)
"""Prefixes of the types of layers that clients run or unpack."""

_IN_TOTO: Final = "application/vnd.in-toto+json"
_KEYS: Final = frozenset(
    {
        *("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "blobs"),
        *("subject", "annotations", "digest", "size", "urls", "platform", "data", "fsLayers"),
    }
)
_FOLDED: Final = frozenset(key.casefold() for key in _KEYS)


@dataclass(frozen=True, slots=True)
class Outline:
    """The content of a manifest of an image, an artifact or an index.

    ``size`` is the sum of what an image lists, in bytes. ``types`` are the media types of its
    configuration and artifact.
    """

    is_index: bool
    types: tuple[str, ...]
    size: int
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    manifests: tuple[Digest, ...]
    has_subject: bool

    @property
    def listed(self) -> frozenset[Digest]:
        """The configuration and the layers of an image."""
        own = {layer.digest for layer in self.layers}
        return frozenset(own if self.config is None else own | {self.config.digest})

    @property
    def is_inert(self) -> bool:
        """True if clients neither run nor unpack any part of it; an index by itself is inert."""
        kinds = [layer.media_type.lower() for layer in self.layers]
        has_image = not self.is_index and not kinds
        return not has_image and not any(kind.startswith(_RUNNABLE) for kind in kinds)

    @property
    def is_artifact(self) -> bool:
        """True if no client treats it as an image, whatever the types of its layers are."""
        return self.config is None or self.config.media_type not in RUN_AS_IMAGES

    @property
    def is_attestation(self) -> bool:
        """True for the attestations that BuildKit lists in an index beside its platforms."""
        return bool(self.layers) and all(layer.media_type == _IN_TOTO for layer in self.layers)


def read_outline(body: bytes) -> Outline | None:
    """Return the outline of a manifest; None if the manifest is ambiguous."""
    document = read_object(body)
    is_index = "manifests" in document
    has_content = any(key in document for key in ("config", "layers", "blobs"))
    if is_index == has_content or "fsLayers" in document or not _is_exact(document):
        return None
    manifests = _descriptors(document.get("manifests", []))
    layers = _descriptors(document.get("layers", []))
    blobs = _descriptors(document.get("blobs", []))
    config = _descriptors([document["config"]] if "config" in document else [])
    if manifests is None or layers is None or blobs is None or config is None:
        return None
    content = (*config, *layers, *blobs)
    sizes: dict[Digest, int] = {}
    for one in content:
        sizes[one.digest] = max(one.size, sizes.get(one.digest, 0))
    artifact = document.get("artifactType")
    types = [artifact] if isinstance(artifact, str) and artifact else []
    types += [one.media_type for one in config if not types or one.media_type != _EMPTY]
    return Outline(
        is_index=is_index,
        types=tuple(types),
        size=sum(sizes.values()),
        config=config[0] if config else None,
        layers=(*layers, *blobs),
        manifests=tuple(one.digest for one in manifests),
        has_subject=isinstance(document.get("subject"), dict),
    )


def platform_of(config: bytes) -> str:
    """Return the platform in the configuration of an image, ``os/architecture/variant``.

    Empty if it states none (image-spec ``config.md``).
    """
    document = read_object(config)
    if not _is_exact_in(document, ("os", "architecture", "variant")):
        return ""
    system, machine = document.get("os"), document.get("architecture")
    variant = document.get("variant")
    if not (isinstance(system, str) and isinstance(machine, str) and system and machine):
        return ""
    parts = (
        [system, machine, variant] if isinstance(variant, str) and variant else [system, machine]
    )
    return "/".join(parts)


def _descriptors(entries: object) -> tuple[Descriptor, ...] | None:
    if not isinstance(entries, list) or len(entries) > MAX_LISTED:
        return None
    found = [read_descriptor(entry) for entry in entries if _is_exact(entry)]
    known = tuple(one for one in found if one is not None)
    return known if len(known) == len(entries) else None


def _is_exact(value: object) -> bool:
    return isinstance(value, dict) and all(
        key in _KEYS or key.casefold() not in _FOLDED for key in value
    )


def _is_exact_in(document: dict[str, object], keys: tuple[str, ...]) -> bool:
    return all(key in keys or key.casefold() not in keys for key in document)
