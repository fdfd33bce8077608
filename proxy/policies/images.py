"""Gathers the facts about an image that rules need, through the cache."""

from collections.abc import Collection
from typing import Final

from proxy.content.content import Content
from proxy.core.errors import NotFound
from proxy.core.manifests import INDEX_TYPES
from proxy.core.names import Digest, Target, digests_of, matches
from proxy.core.outline import RUN_AS_IMAGES, Outline, platform_of, read_outline
from proxy.core.policy import CacheDirective
from proxy.core.records import Descriptor
from proxy.policies.rules import ATTACHMENT_TAG, ImageFacts, Rule
from proxy.repository import Cache
from proxy.repository.reading import read_blob
from proxy.runtime.executors import in_thread_if_large

MAX_CONFIG: Final = 4 * 1024 * 1024
"""Maximum size in bytes of a configuration that is read for its platform."""

MAX_ATTACHED: Final = 64
"""Maximum number of layers of an attachment that are read."""

MAX_CHILDREN: Final = 128
"""Manifests of an index whose sizes are added up. An index with more has no known size."""

MAX_PARENTS: Final = 32
"""Maximum number of parent manifests that are examined."""

_MAX_DEPTH: Final = 3


class Images:
    """Reads manifests and configurations of images."""

    def __init__(self, cache: Cache, content: Content) -> None:
        self._cache = cache
        self._content = content

    async def body(self, target: Target, digest: Digest) -> bytes:
        """Return a manifest, from the cache or from upstream. Raises ``RegistryError``."""
        if await self._content.links.has(target, digest):
            if (known := self._cache.manifests.in_ram(digest)) is not None:
                return known.body
            body = await self._content.read(digest)
            if body is not None and await in_thread_if_large(
                len(body), lambda: matches(digest, body)
            ):
                return body
        return (await self._cache.manifests.get(target, digest, CacheDirective.ANY)).body

    async def parents(self, target: Target, digest: Digest) -> list[Digest]:
        """Return the first held manifests of a repository that list this digest."""
        parents = await self._content.graph.parents(digest)
        return [one for one in parents[:MAX_PARENTS] if await self._content.links.has(target, one)]

    async def indexes_above(self, target: Target, digest: Digest) -> list[Digest]:
        """Return the held indexes of a repository that list this digest, directly or not."""
        found: dict[Digest, None] = {}
        level = [digest]
        for _ in range(_MAX_DEPTH):
            above = [
                parent
                for child in level
                for parent in await self.parents(target, child)
                if parent not in found and await self._lists(target, parent, child)
            ]
            found.update(dict.fromkeys(above))
            level = above
        return list(found)[:MAX_PARENTS]

    async def manifests(self, target: Target, digest: Digest) -> tuple[Digest, ...]:
        """Return the manifests in an index, none for other content. Raises ``RegistryError``."""
        record = await self._content.record(digest)
        if record is None or record.media_type not in INDEX_TYPES:
            return ()
        body = await self.body(target, digest)
        outline = await in_thread_if_large(len(body), lambda: read_outline(body))
        return () if outline is None else outline.manifests

    async def is_manifest(self, digest: Digest) -> bool:
        """Return True if a manifest with this digest is held."""
        record = await self._content.record(digest)
        return record is not None and record.media_type is not None

    async def facts(
        self, target: Target, digest: Digest, ref: str, rules: Collection[Rule]
    ) -> ImageFacts:
        """Return what ``rules`` need; ``ref`` is a tag or digest. Raises ``RegistryError``."""
        listed = frozenset({digest})
        if not any(rule.needs_manifest or rule.key_files for rule in rules):
            return ImageFacts(listed)
        body = await self.body(target, digest)
        outline = await in_thread_if_large(len(body), lambda: read_outline(body))
        has_digests = any(rule.digest_file for rule in rules)
        if has_digests:
            listed |= await in_thread_if_large(len(body), lambda: digests_of(body))
        above = await self.indexes_above(target, digest) if has_digests else []
        if outline is None:
            return ImageFacts(listed, frozenset(above), is_understood=False)
        is_attachment = outline.is_inert and await self._is_attached(target, outline, digest, ref)
        needs_size = any(rule.policy.max_image_size for rule in rules)
        size = await self._size(target, outline, 0) if needs_size else 0
        platform = None
        if not is_attachment and any(rule.policy.platforms for rule in rules):
            platform = await self._platform(target, outline)
        return ImageFacts(
            listed | outline.listed,
            frozenset(above),
            size=size or 0,
            platform=platform,
            types=outline.types,
            is_understood=size is not None,
            is_attachment=is_attachment,
        )

    async def _lists(self, target: Target, parent: Digest, child: Digest) -> bool:
        """Return True if ``parent`` is an index of ``child``, by its own bytes."""
        return child in await self.manifests(target, parent)

    async def _is_attached(
        self, target: Target, outline: Outline, digest: Digest, ref: str
    ) -> bool:
        """Return True for an attachment of an image that clients cannot run.

        Signatures under a tag of cosign have the configuration of an image, and Docker and Podman
        unpack layers whatever their types. So their layers must be text.
        """
        if outline.is_artifact and outline.has_subject:
            return True
        if not await self._is_tagged_attachment(target, digest, ref):
            return False
        return outline.is_artifact or await self._is_text(target, outline.layers)

    async def _is_text(self, target: Target, layers: Collection[Descriptor]) -> bool:
        if len(layers) > MAX_ATTACHED or any(layer.size > MAX_CONFIG for layer in layers):
            return False
        for layer in layers:
            body = await read_blob(self._cache.small, target, layer)
            if not await in_thread_if_large(len(body), lambda body=body: _is_text(body)):  # type: ignore[misc]
                return False
        return True

    async def _is_tagged_attachment(self, target: Target, digest: Digest, ref: str) -> bool:
        if ATTACHMENT_TAG.fullmatch(ref):
            return True
        return any(
            tagged.target == target and ATTACHMENT_TAG.fullmatch(tagged.tag)
            for tagged in await self._content.tags.pointing_to(digest)
        )

    async def _size(self, target: Target, outline: Outline, depth: int) -> int | None:
        """Return the size of an image, or of the largest image of an index.

        None if that needs too many lookups. An image that upstream does not have has no size.
        """
        if not outline.is_index:
            return outline.size
        if depth == _MAX_DEPTH or len(outline.manifests) > MAX_CHILDREN:
            return None
        largest = 0
        for child in outline.manifests:
            try:
                body = await self.body(target, child)
            except NotFound:
                continue
            below = await in_thread_if_large(len(body), lambda body=body: read_outline(body))  # type: ignore[misc]
            size = None if below is None else await self._size(target, below, depth + 1)
            if size is None:
                return None
            largest = max(largest, size)
        return largest

    async def _platform(self, target: Target, outline: Outline) -> str | None:
        """Return the platform in a configuration that clients run, empty if it states none.

        None for content that clients do not run.
        """
        config = outline.config
        if outline.is_index or outline.is_attestation or config is None:
            return None
        if config.media_type not in RUN_AS_IMAGES:
            return None
        if config.size > MAX_CONFIG:
            return ""
        return platform_of(await read_blob(self._cache.small, target, config))


def _is_text(body: bytes) -> bool:
    """Return True for UTF-8 without NUL, which excludes programs and compressed archives."""
    try:
        return "\0" not in body.decode()
    except UnicodeDecodeError:
        return False
