"""Describes an image: its platforms, their layers, and its referrers.

Reads only held manifests: it fetches nothing, and does not count as a use, so that inspecting an
image does not keep it in the cache.
"""

from dataclasses import dataclass, replace
from typing import Final

from proxy.content.content import Content
from proxy.core.manifests import INDEX_TYPES, read_descriptor
from proxy.core.names import Digest, Target
from proxy.core.platforms import platform_name
from proxy.core.tolerant_json import as_list, read_object
from proxy.runtime.executors import in_thread_if_large
from proxy.services.inventory import weights

MAX_PLATFORMS: Final = 100
MAX_LAYERS: Final = 500
MAX_REFERRERS: Final = 100


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer; ``shared_with`` is how many other held manifests list it."""

    digest: Digest
    size: int
    held: bool = False
    shared_with: int = 0


@dataclass(frozen=True, slots=True)
class PlatformImage:
    """The image for one platform; ``size`` is that of its layers, and None if it is not held."""

    platform: str
    digest: Digest
    held_bytes: int
    size: int | None
    layers: list[Layer]


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to an image: a signature, an SBOM, an attestation."""

    digest: str
    artifact_type: str | None
    held: bool


async def platforms(content: Content, digest: Digest) -> list[PlatformImage]:
    """Return the images of an index, or the one of a manifest; empty if it is not held."""
    record = await content.record(digest)
    if record is None:
        return []
    document = await _document(content, digest)
    if record.media_type not in INDEX_TYPES:
        return [await _image(content, digest, await _own_platform(content, document))]
    entries = as_list(document.get("manifests"))[:MAX_PLATFORMS]
    found = [
        (below.digest, platform_name(entry.get("platform")))
        for entry in entries
        if isinstance(entry, dict) and (below := read_descriptor(entry)) is not None
    ]
    return [await _image(content, below, platform) for below, platform in found]


async def referrers(content: Content, target: Target, digest: Digest) -> list[Referrer]:
    """Return the known referrers of a manifest."""
    entries = (await content.links.referrers(target, digest))[:MAX_REFERRERS]
    digests = [str(entry.get("digest")) for entry in entries]
    held = await content.records([Digest(one) for one in digests])
    types = [entry.get("artifactType") for entry in entries]
    return [
        Referrer(one, kind if isinstance(kind, str) else None, Digest(one) in held)
        for one, kind in zip(digests, types, strict=True)
    ]


async def _image(content: Content, digest: Digest, platform: str) -> PlatformImage:
    held = (await weights(content, [digest]))[digest].held_bytes
    layers = await _layers(content, await _document(content, digest))
    size = sum(layer.size for layer in layers) if held else None
    return PlatformImage(platform, digest, held, size, layers)


async def _layers(content: Content, manifest: dict[str, object]) -> list[Layer]:
    listed = [read_descriptor(entry) for entry in as_list(manifest.get("layers"))[:MAX_LAYERS]]
    layers = [Layer(one.digest, one.size) for one in listed if one is not None]
    digests = [layer.digest for layer in layers]
    records, listings = await content.records(digests), await content.graph.listings(digests)
    return [
        replace(one, held=one.digest in records, shared_with=max(0, listings[one.digest] - 1))
        for one in layers
    ]


async def _own_platform(content: Content, manifest: dict[str, object]) -> str:
    """Return the platform that the configuration of an image names, ``any`` if none is held."""
    config = read_descriptor(manifest.get("config"))
    if config is None:
        return "any"
    about = await _document(content, config.digest)
    return platform_name(about) if about.get("os") else "any"


async def _document(content: Content, digest: Digest) -> dict[str, object]:
    """Return held JSON; empty if it is not held, or not an object."""
    body = await content.read_untouched(digest)
    return {} if body is None else await in_thread_if_large(len(body), lambda: read_object(body))
