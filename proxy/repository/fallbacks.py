"""Manifests and tags from other directories of Millpond's layout, asked in their order."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from proxy.core import manifests
from proxy.core.manifests import ManifestContent
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import Descriptor
from proxy.repository.results import Manifest
from proxy.runtime.executors import by_size
from proxy.runtime.metrics import Outcome
from proxy.storage.fallback import FallbackDirectory


class Found(NamedTuple):
    """A proven manifest, and what it says."""

    manifest: Manifest
    content: ManifestContent


async def find_manifest(
    fallbacks: Iterable[FallbackDirectory], target: Target, digest: Digest
) -> Found | None:
    """Return a manifest that one of them lists for this repository."""
    for fallback in fallbacks:
        body = await fallback.manifest(target, digest)
        if body is None:
            continue
        content = await by_size(len(body), partial(manifests.read, body))
        if content.is_manifest:
            media_type = content.own_type or content.implied_type
            descriptor = Descriptor(media_type, digest, len(body))
            return Found(Manifest(descriptor, body, Outcome.HIT, content.children), content)
    return None


async def find_tag(
    fallbacks: Iterable[FallbackDirectory], target: Target, tag: Tag
) -> Descriptor | None:
    """Return what a tag points to that one of them names."""
    for fallback in fallbacks:
        descriptor = await fallback.tag(target, tag)
        if descriptor is not None:
            return descriptor
    return None


async def have(fallbacks: Iterable[FallbackDirectory], target: Target, digest: Digest) -> bool:
    """Return True if one of them can give the content to this repository."""
    for fallback in fallbacks:
        if await fallback.has(target, digest):
            return True
    return False
