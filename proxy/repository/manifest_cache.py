"""Manifests on the disk, with the recently used ones in memory."""

import asyncio
from contextlib import nullcontext
from typing import Final, NamedTuple

from cachetools import LRUCache

from proxy.content.content import Content
from proxy.core import manifests
from proxy.core.manifests import ManifestContent
from proxy.core.names import Digest, Target, matches
from proxy.core.records import BlobRecord, Descriptor
from proxy.repository.results import Manifest
from proxy.runtime.executors import LARGE, in_thread_if_large
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight

_MANIFEST_BYTES: Final = 2048
_CHILD_BYTES: Final = 300
_SIZE_BYTES: Final = 600
"""Memory for the objects of a manifest, of each descriptor in it, and of an entry of ``sizes``."""

_SHARE_OF_SIZES: Final = 8
"""The memory for ``sizes`` is the memory for manifests divided by this."""

_MAX_LARGE: Final = 4
"""Maximum number of large manifests that are read and hashed at a time. The disk is faster than
hashing, so waiting manifests would fill the memory."""


class CachedManifest(NamedTuple):
    """A manifest in memory. ``is_stored``: it is on the disk too, and is dropped with that copy."""

    hit: Manifest
    is_stored: bool

    @property
    def ram_bytes(self) -> int:
        """Bytes of memory: the body, and the objects for the manifest and its descriptors."""
        children = self.hit.children
        listed = 0 if children is None else sum(map(len, children))
        return len(self.hit.body) + _MANIFEST_BYTES + _CHILD_BYTES * listed


class ManifestCache:
    """Verified manifests by digest, in at most ``ram_bytes`` of memory."""

    def __init__(self, content: Content, ram_bytes: int) -> None:
        self._content = content
        self._loads: SingleFlight[Manifest | None] = SingleFlight("read manifest")
        self._large = asyncio.Semaphore(_MAX_LARGE)
        sizes = ram_bytes // _SHARE_OF_SIZES
        self._ram: LRUCache[Digest, CachedManifest] = LRUCache(
            ram_bytes - sizes, getsizeof=lambda held: held.ram_bytes
        )
        self.sizes: Final[LRUCache[tuple[Target, Digest], int]] = LRUCache(
            max(1, sizes // _SIZE_BYTES)
        )
        """Blob sizes in bytes according to the repository's own manifests, not verified."""

    async def close(self) -> None:
        """Cancel running reads."""
        await self._loads.close()

    def in_ram(self, digest: Digest) -> CachedManifest | None:
        """Return a manifest in memory. The caller checks if it may be served."""
        return self._ram.get(digest)

    def cached(self, target: Target, record: BlobRecord) -> Manifest | None:
        """Return a manifest of a repository from memory or the page cache, and count its use."""
        held = self._ram.get(record.digest)
        if held is not None:
            self._content.touch(record.digest)
            return held.hit
        hit = self._cached(record)
        if hit is not None:
            self.add(CachedManifest(hit, is_stored=True))
            self.note_sizes(target, hit)
        return hit

    async def get(self, digest: Digest) -> Manifest | None:
        """Return a manifest as a hit and count its use; verified if it is read from the disk.

        The caller checks if it may be served, and calls ``note_sizes`` if it may.
        """
        record = await self._content.find(digest)
        held = self._ram.get(digest)
        if held is not None and (record is not None or not held.is_stored):
            self._content.touch(digest)
            return held.hit
        self._ram.pop(digest, None)  # evicted manifests leave memory too
        if record is None or record.size > manifests.MAX_SIZE:
            return None
        hit = self._cached(record) or await self._loads.do(digest, lambda: self._load(record))
        if hit is not None:
            self.add(CachedManifest(hit, is_stored=True))
        return hit

    def add(self, held: CachedManifest) -> None:
        """Keep a verified manifest in memory."""
        if held.ram_bytes <= self._ram.maxsize:
            self._ram[held.hit.descriptor.digest] = held

    def note_sizes(self, target: Target, manifest: Manifest) -> None:
        """Note the sizes of the blobs that a manifest lists.

        Only for a repository that holds the manifest: a public blob whose size is noted is served
        under the repository's name.
        """
        for blob in () if manifest.children is None else manifest.children.blobs:
            self.sizes[target, blob.digest] = blob.size

    async def forget(self, target: Target, digest: Digest) -> None:
        """Drop a manifest from memory unless it is still on the disk, and its size as a blob."""
        self.sizes.pop((target, digest), None)
        if not await self._content.holds(digest):
            self._ram.pop(digest, None)

    def _cached(self, record: BlobRecord) -> Manifest | None:
        """Return a small manifest from the page cache: faster than asking a thread to read it."""
        body = self._content.read_cached(record) if record.size <= LARGE else None
        found = None if body is None else verified(record.digest, body)
        return None if body is None or found is None else stored(record, body, found)

    async def _load(self, record: BlobRecord) -> Manifest | None:
        async with self._large if record.size > LARGE else nullcontext():
            body = await self._content.read(record.digest)
            if body is None:
                return None
            found = await in_thread_if_large(len(body), lambda: verified(record.digest, body))
        if found is None:
            await self._content.faults.drop(record.digest, reason="its bytes have changed")
            return None
        return stored(record, body, found)


def verified(digest: Digest, body: bytes) -> ManifestContent | None:
    """Return a manifest's content, None if its bytes do not match ``digest``."""
    return manifests.read(body) if matches(digest, body) else None


def stored(record: BlobRecord, body: bytes, content: ManifestContent) -> Manifest | None:
    """Return the manifest of a record and verified bytes, None for other content."""
    if record.media_type is None and not content.is_manifest:
        return None
    media_type = content.own_type or record.media_type or content.implied_type
    descriptor = Descriptor(media_type, record.digest, len(body))
    return Manifest(descriptor, body, Outcome.HIT, content.children)
