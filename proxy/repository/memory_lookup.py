"""Finds content without waiting: held, linked, and fresh content in RAM, or in the page cache.

Content that is not found here is not absent: ``Manifests``, ``Tags`` and ``Blobs`` look further.
"""

from typing import NamedTuple

from proxy.content.content import Content
from proxy.core.names import Digest, Kind, Route, Tag, Target, is_digest
from proxy.core.records import Descriptor
from proxy.repository.manifests import Manifests
from proxy.repository.small_blobs import SmallBlobs
from proxy.repository.tags import Tags


class Found(NamedTuple):
    """Content. ``fresh``: the seconds for which a tag needs no check."""

    descriptor: Descriptor
    body: bytes
    fresh: float | None = None


class MemoryLookup:
    """Searches the RAM of the other modules."""

    def __init__(
        self, content: Content, manifests: Manifests, tags: Tags, small: SmallBlobs
    ) -> None:
        self._content = content
        self._manifests = manifests
        self._tags = tags
        self._small = small

    def get(self, target: Target, route: Route) -> Found | None:
        """Return the content of a route and count its use; None to wait for it, and offline."""
        if self._manifests.is_offline(target):
            return None
        match route.kind:
            case Kind.MANIFEST if is_digest(route.ref):
                digest = Digest(route.ref)
                if not self._tags.cool_downs.is_allowed(target, digest, digest):
                    return None
                return self._manifest(target, digest, None)
            case Kind.MANIFEST if route.as_of is None:
                return self._tagged(target, Tag(route.ref))
            case Kind.BLOB:
                return self._blob(target, Digest(route.ref))
            case _:
                return None

    def _manifest(self, target: Target, digest: Digest, fresh: float | None) -> Found | None:
        record = self._content.peek(target, digest)
        manifest = None if record is None else self._manifests.cached(target, record)
        if manifest is None:
            return None
        return Found(manifest.descriptor, manifest.body, fresh)

    def _tagged(self, target: Target, tag: Tag) -> Found | None:
        record = self._content.tags.peek(target, tag)
        if record is None:
            return None
        fresh = self._tags.seconds_fresh(target, tag, record)
        if fresh is None:
            return None
        return self._manifest(target, record.descriptor.digest, fresh)

    def _blob(self, target: Target, digest: Digest) -> Found | None:
        small = self._small.in_ram(digest)
        if small is None or not self._content.peek_use(target, digest):
            return None
        return Found(Descriptor("", digest, len(small.body)), small.body)
