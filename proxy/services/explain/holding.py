"""The held content of an image, by platform. Counts no use."""

from typing import Final

from proxy.content.content import Content
from proxy.core.errors import DigestInvalid
from proxy.core.manifests import INDEX_TYPES
from proxy.core.names import Digest, Target, parse_digest
from proxy.core.platforms import platform_name
from proxy.core.tolerant_json import as_list, read_object
from proxy.runtime.executors import in_thread_if_large
from proxy.services.explain.facts import Held, Missing, Part
from proxy.services.inventory import State, weigh

MAX_PARTS: Final = 100
MAX_MISSING: Final = 50
"""Missing pieces that are named; all are counted."""

ATTESTATION: Final = "attestation"
"""Shown in place of the platform of attestations, unknown/unknown (BuildKit)."""


async def held_of(content: Content, target: Target, digest: Digest | None) -> Held:
    """Return the held content of an image; None for a tag whose digest is not known."""
    record = None if digest is None else await content.record(digest)
    if digest is None or record is None:
        return Held(digest, None, State.ABSENT, 0, is_linked=False)
    weight = await weigh(content, digest)
    is_linked = await content.links.has(target, digest)
    if record.media_type in INDEX_TYPES:
        listed = await _listed(content, digest)
        parts = [await _part(content, platform, child) for platform, child in listed]
    else:
        parts = [await _part(content, None, digest)]
    return Held(digest, record.media_type, weight.state, weight.held_bytes, is_linked, tuple(parts))


async def _listed(content: Content, digest: Digest) -> list[tuple[str, Digest]]:
    """Return the images of a held index with their platforms; the first ``MAX_PARTS``."""
    body = await content.read_untouched(digest)
    if body is None:
        return []
    document = await in_thread_if_large(len(body), lambda: read_object(body))
    found: list[tuple[str, Digest]] = []
    for entry in as_list(document.get("manifests")):
        if isinstance(entry, dict) and len(found) < MAX_PARTS:
            name = platform_name(entry.get("platform"))
            try:
                child = parse_digest(str(entry.get("digest")))
            except DigestInvalid:
                continue
            found.append((ATTESTATION if name == "unknown/unknown" else name, child))
    return found


async def _part(content: Content, platform: str | None, digest: Digest) -> Part:
    weight = await weigh(content, digest)
    described = await content.graph.described(digest)
    if weight.state is State.ABSENT or described is None:
        return Part(platform, digest, weight.state, weight.held_bytes, missing_pieces=1)
    there = await content.records(child.digest for child in described)
    missing = [Missing(*child) for child in described if child.digest not in there]
    return Part(
        platform,
        digest,
        weight.state,
        weight.held_bytes,
        tuple(missing[:MAX_MISSING]),
        len(missing),
        sum(piece.size for piece in missing),
    )
