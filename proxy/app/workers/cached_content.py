"""The content that a worker can serve: held, linked, and found without the main process.

Content that is not found here is not absent: the main process answers then, also if a file is
missing or wrong.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from cachetools import LRUCache

from proxy.app.workers.decisions import Decisions
from proxy.app.workers.reports import Uses
from proxy.core import manifests
from proxy.core.errors import StorageError
from proxy.core.names import Digest, Kind, Route, Tag, Target, is_digest, matches
from proxy.core.records import BlobRecord, Descriptor, TagRecord
from proxy.index.reader import IndexReader
from proxy.repository.manifest_cache import CachedManifest, stored, verified
from proxy.repository.memory_lookup import Found
from proxy.repository.results import LocalBlob, Manifest, SmallBlob
from proxy.runtime.executors import in_thread, in_thread_if_large
from proxy.settings import Memory
from proxy.storage.directory import ALGORITHMS, OPEN_FILE
from proxy.storage.disk import DiskBlob

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_EACH: Final = 500
"""Bytes that the objects around one body take in RAM."""


class CachedContent:
    """The index and the files of the cache, with small content in RAM. Close it when done."""

    def __init__(
        self, root: Path, reader: IndexReader, decisions: Decisions, uses: Uses, memory: Memory
    ) -> None:
        """Open the directory; ``memory`` is this process's share."""
        blobs = root / "blobs"
        self._directories = {name: os.open(blobs / name, _OPEN_DIRECTORY) for name in ALGORITHMS}
        self._reader = reader
        self._decisions = decisions
        self._uses = uses
        self._manifests: LRUCache[Digest, CachedManifest] = LRUCache(
            int(memory.manifests), lambda held: held.ram_bytes
        )
        self._small: LRUCache[Digest, SmallBlob] = LRUCache(
            int(memory.blobs), lambda small: len(small.body) + _EACH
        )
        self._largest = min(int(memory.largest_blob), int(memory.blobs) - _EACH)
        self.tag: Final = reader.tag

    def close(self) -> None:
        """Close the directory; open files stay readable."""
        for directory in self._directories.values():
            os.close(directory)

    def get(self, target: Target, route: Route) -> Found | None:
        """Return content in RAM and count its use, for the response cache."""
        if route.kind is Kind.BLOB:
            digest = Digest(route.ref)
            small = self._small.get(digest)
            if small is None or self._reader.peek_held(target, digest) is None:
                return None
            self._uses.add(Kind.BLOB, target, digest)
            return Found(Descriptor("", digest, small.size), small.body)
        if self._decisions.is_offline(target):
            return None
        if is_digest(route.ref):
            return self._manifest(target, Digest(route.ref), None)
        record = self._reader.peek_tag(target, Tag(route.ref))
        fresh = None if record is None else self.seconds_fresh(target, Tag(route.ref), record)
        if record is None or fresh is None:
            return None
        return self._manifest(target, record.descriptor.digest, fresh)

    def seconds_fresh(self, target: Target, tag: Tag, record: TagRecord) -> float | None:
        """Return for how many seconds a tag needs no check; None if it does."""
        return self._decisions.seconds_fresh(target, tag, record, time.time())

    async def manifest(self, target: Target, digest: Digest) -> Manifest | None:
        """Return a manifest as a hit, and count its use."""
        record = await self._reader.held(target, digest)
        if record is None or self._decisions.is_offline(target):
            return None
        known = self._manifests.get(digest)
        hit = await self._load(record) if known is None else known.hit
        if hit is not None:
            self._uses.add(Kind.MANIFEST, target, digest)
        return hit

    async def size(self, target: Target, digest: Digest) -> int | None:
        """Return the size of a blob, and count its use; None if its file is missing or wrong."""
        record = await self._reader.held(target, digest)
        file = None if record is None else self._open(record)
        if file is None:
            return None
        file.close()
        self._uses.add(Kind.MANIFEST, target, digest)  # no client has requested it as a blob
        return file.size

    async def blob(self, target: Target, digest: Digest) -> LocalBlob | SmallBlob | None:
        """Return a blob to be sent and then closed, and count its use."""
        record = await self._reader.held(target, digest)
        if record is None:
            return None
        found: LocalBlob | SmallBlob | None = self._small.get(digest)
        if found is None and (file := self._open(record)) is not None:
            found = (
                LocalBlob(file)
                if file.size > self._largest
                else await self._cache_small(digest, file)
            )
        if found is not None:
            self._uses.add(Kind.BLOB, target, digest)
        return found

    def _manifest(self, target: Target, digest: Digest, fresh: float | None) -> Found | None:
        held = self._manifests.get(digest)
        if held is None or self._reader.peek_held(target, digest) is None:
            return None
        self._uses.add(Kind.MANIFEST, target, digest)
        return Found(held.hit.descriptor, held.hit.body, fresh)

    async def _load(self, record: BlobRecord) -> Manifest | None:
        file = self._open(record) if record.size <= manifests.MAX_SIZE else None
        body = None if file is None else await _read(file)
        if body is None:
            return None
        content = await in_thread_if_large(len(body), lambda: verified(record.digest, body))
        hit = None if content is None else stored(record, body, content)
        if hit is not None:
            held = CachedManifest(hit, is_stored=True)
            if held.ram_bytes <= self._manifests.maxsize:
                self._manifests[record.digest] = held
        return hit

    async def _cache_small(self, digest: Digest, file: DiskBlob) -> SmallBlob | None:
        """Read a small blob into RAM and close its file."""
        body = await _read(file)
        if body is None or not matches(digest, body):
            return None
        small = self._small[digest] = SmallBlob(body)
        return small

    def _open(self, record: BlobRecord) -> DiskBlob | None:
        """Return the file of a record, None if there is none of its size."""
        algorithm, _, encoded = record.digest.partition(":")
        with suppress(OSError):
            fd = os.open(encoded, OPEN_FILE, dir_fd=self._directories[algorithm])
            file = DiskBlob(fd)
            if file.size == record.size:
                return file
            file.close()
        return None


async def _read(file: DiskBlob) -> bytes | None:
    """Return all of a file, and close it; None if it cannot be read."""
    try:
        return await in_thread(lambda: file.read(0, file.size))
    except StorageError:
        return None
    finally:
        file.close()
