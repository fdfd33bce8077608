"""Small held blobs in RAM: configurations and small layers are asked for far more than they weigh.

They come here from the disk, hashed again on the way, when they are first sent. Whether one is
still held is not known here: who asks for it must know.
"""

from typing import Final

from cachetools import LRUCache

from proxy.cache.answers import Blob, Local, Small
from proxy.cache.blobs import Blobs
from proxy.cache.holdings import Holdings
from proxy.errors import Overloaded, StorageError, is_disk_error
from proxy.names import Digest, Target, matches
from proxy.policy import Wish
from proxy.store import BlobFile
from proxy.threads import in_thread

_EACH: Final = 500
"""Bytes that the objects around one body take."""


class SmallBlobs:
    """Blobs, of which those of up to ``largest`` bytes stay in RAM, ``ram_bytes`` in all."""

    def __init__(self, blobs: Blobs, holdings: Holdings, *, ram_bytes: int, largest: int) -> None:
        self._blobs = blobs
        self._holdings = holdings
        self._largest = min(ram_bytes, largest)
        self._ram: LRUCache[Digest, Small] = LRUCache(
            ram_bytes, lambda small: len(small.body) + _EACH
        )

    def in_ram(self, digest: Digest) -> Small | None:
        """Return what lies in RAM; whether it may be served is for others to ask."""
        return self._ram.get(digest)

    async def get(self, target: Target, digest: Digest, asked: Wish) -> Blob:
        """Return a blob to be sent and then closed. Raises ``RegistryError``."""
        small = self._ram.get(digest)
        if small is not None:
            if await self._holdings.holds(digest):
                if await self._holdings.linked(target, digest):
                    self._holdings.index.touch(digest)
                    return small
            else:
                self._ram.pop(digest, None)
        while True:
            blob = await self._blobs.get(target, digest, asked)
            if not isinstance(blob, Local) or blob.file.size > self._largest:
                return blob
            kept = await self._keep(digest, blob.file)
            if kept is not None:
                return kept

    async def _keep(self, digest: Digest, file: BlobFile) -> Small | None:
        """Take a blob into RAM and close its file; None when it has gone bad, and is dropped."""
        try:
            body = await in_thread(file.read)
        except StorageError as error:
            if not is_disk_error(error):
                raise Overloaded(f"{digest} cannot be read now: {error}") from error
            self._holdings.trouble(error)
            body = b""
        finally:
            file.close()
        if not matches(digest, body):
            await self._holdings.drop(digest, reason="its bytes have changed")
            return None
        small = Small(body)
        if len(body) + _EACH <= self._ram.maxsize:
            self._ram[digest] = small
        return small
