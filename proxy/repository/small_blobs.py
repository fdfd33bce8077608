"""Small held blobs in RAM: configurations and small layers are requested most often.

A blob is read from the disk, and hashed again, when it is first sent. The caller must check whether
a blob in RAM is still held.
"""

from typing import Final

from cachetools import LRUCache

from proxy.content.content import Content
from proxy.core.errors import Overloaded, StorageError, is_disk_error
from proxy.core.names import Digest, Target, matches
from proxy.core.policy import CacheDirective
from proxy.repository.blobs import Blobs
from proxy.repository.results import Blob, LocalBlob, SmallBlob
from proxy.runtime.executors import in_thread
from proxy.storage.disk import DiskBlob

_EACH: Final = 500
"""Bytes that the objects around one body take in RAM."""


class SmallBlobs:
    """Blobs, of which those of up to ``largest`` bytes stay in RAM, ``ram_bytes`` in all."""

    def __init__(self, blobs: Blobs, content: Content, *, ram_bytes: int, largest: int) -> None:
        self._blobs = blobs
        self._content = content
        self._largest = min(ram_bytes, largest)
        self._ram: LRUCache[Digest, SmallBlob] = LRUCache(
            ram_bytes, lambda small: len(small.body) + _EACH
        )

    def in_ram(self, digest: Digest) -> SmallBlob | None:
        """Return a blob from RAM; the caller checks whether it may be served."""
        return self._ram.get(digest)

    async def get(self, target: Target, digest: Digest, directive: CacheDirective) -> Blob:
        """Return a blob to be sent and then closed. Raises ``RegistryError``."""
        small = self._ram.get(digest)
        if small is not None:
            if await self._content.holds(digest):
                if await self._content.links.has(target, digest):
                    self._content.touch(digest)
                    return small
            else:
                self._ram.pop(digest, None)
        while True:
            blob = await self._blobs.get(target, digest, directive)
            if not isinstance(blob, LocalBlob) or blob.size > self._largest:
                return blob
            small = await self._cache_small(digest, blob.blob)
            if small is not None:
                return small

    async def _cache_small(self, digest: Digest, file: DiskBlob) -> SmallBlob | None:
        """Read a blob into RAM and close its file. A wrong one is dropped, and None returned."""
        try:
            body = await in_thread(lambda: file.read(0, file.size))
        except StorageError as error:
            if not is_disk_error(error):
                raise Overloaded(f"{digest} cannot be read now: {error}") from error
            self._content.faults.count_error(error)
            body = b""
        finally:
            file.close()
        if not matches(digest, body):
            await self._content.faults.drop(digest, reason="its bytes have changed")
            return None
        small = SmallBlob(body)
        if len(body) + _EACH <= self._ram.maxsize:
            self._ram[digest] = small
        return small
