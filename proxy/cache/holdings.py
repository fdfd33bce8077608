"""What lies here: store, index and evictor as one, each answer checked before it is given.

The disk may lie, fill up or fail at any time; nothing of that leaves this room but as "not held"
or "not kept", and a count.
"""

import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

import structlog

from proxy import manifests
from proxy.errors import StorageError
from proxy.evict import Evictor, NoRoom, Reservation
from proxy.index import Index
from proxy.metrics import CacheCounters
from proxy.names import Digest, Proof
from proxy.once import Once
from proxy.records import BlobRecord, Child, Clock, Descriptor, disk_bytes
from proxy.store import BlobFile, BlobStore, Spool
from proxy.threads import Pool, in_thread, to_its_end

CHUNK: Final = 4 * 1024 * 1024

log = structlog.get_logger(__name__)


class Holdings:
    """The content of this cache."""

    def __init__(
        self,
        store: BlobStore,
        index: Index,
        evictor: Evictor,
        counters: CacheCounters,
        clock: Clock,
    ) -> None:
        self.store = store
        self.index = index
        self.evictor = evictor
        self.counters = counters
        self.clock = clock
        self.is_settled = False
        """Index and store agree: what has no row is not here."""
        self._landing: set[Digest] = set()
        self._adoptions: Once[BlobRecord | None] = Once("adopt")

    async def close(self) -> None:
        """Cancel what runs."""
        await self._adoptions.close()

    async def holds(self, digest: Digest) -> bool:
        """Tell whether content is held, without opening it."""
        return await self.find(digest) is not None

    async def find(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content.

        After the index has been lost, content that is here is not fetched again: until all of it
        is known, a file that is asked for is proven and known at once.
        """
        record = await self.index.blob(digest)
        if record is not None or self.is_settled or digest in self._landing:
            return record
        return await self.adopt_orphan(digest)

    async def adopt_orphan(self, digest: Digest) -> BlobRecord | None:
        """Return the record of a blob that had none, or None: it is not here, or set aside.

        One proof however many ask.
        """
        if not self._is_here(digest):
            return None
        return await self._adoptions.do(digest, lambda: self._adopt_orphan(digest))

    async def open(self, digest: Digest) -> BlobFile | None:
        """Return held content, opened, and count the use; None when it is not (rightly) held."""
        record = await self.find(digest)
        if record is None:
            return None
        try:
            file = self.store.open(digest)
        except StorageError as error:
            self.trouble(error)
            return None
        if file is not None and file.size == record.size:
            self.index.touch(digest)
            return file
        if file is not None:
            file.close()
        await self.drop(digest, reason="the file is missing or has another size")
        return None

    async def read(self, digest: Digest) -> bytes | None:
        """Return small content whole."""
        file = await self.open(digest)
        if file is None:
            return None
        try:
            return await in_thread(file.read)
        except StorageError as error:
            self.trouble(error)
            return None
        finally:
            file.close()

    async def drop(self, digest: Digest, *, reason: str) -> None:
        """Forget content that is not what it should be."""
        self.counters.storage_errors += 1
        log.warning("dropped from the cache", digest=digest, reason=reason)
        await to_its_end(self._forget(digest))

    async def _forget(self, digest: Digest) -> None:
        """Never left half done, or the digest could not be stored again."""
        self.store.condemn([digest])
        await self.index.drop_blobs([digest])
        await self.store.delete([digest])

    async def set_aside(self, digest: Digest, note: dict[str, object]) -> str | None:
        """Forget content that has gone bad, and keep it for people to look at.

        ``note`` is written beside it if there is room. Returns where it lies, None when it could
        only be deleted.
        """
        self.counters.corrupted += 1
        return await to_its_end(self._set_aside(digest, note))

    async def _set_aside(self, digest: Digest, note: dict[str, object]) -> str | None:
        text = json.dumps({"digest": digest, "found_at": self.clock(), **note}, indent=2) + "\n"
        record = self.index.held(digest)
        size = 0 if record is None else disk_bytes(record.size)
        kept: str | None = None
        self.store.condemn([digest])
        try:
            await self.index.drop_blobs([digest])
            with ExitStack() as resources:
                try:
                    reservation = await self.evictor.reserve(size + len(text.encode()))
                    resources.callback(reservation.release)
                except NoRoom:
                    text = ""
                kept = await in_thread(lambda: self.store.quarantine.take(digest, text), Pool.SYNC)
        except StorageError as error:
            log.warning("not kept in quarantine", digest=digest, reason=str(error))
        finally:  # whatever happens, or the digest could not be stored again
            await self.store.delete([digest])
        log.error("content has gone bad", digest=digest, kept_as=kept, reason=note.get("reason"))
        return kept

    async def adopt(
        self,
        reservation: Reservation,
        spool: Spool,
        descriptor: Descriptor,
        children: Iterable[Child] | None = (),
    ) -> None:
        """Make a verified spool held content, with what it lists. Raises ``StorageError``."""
        digest, media_type = descriptor.digest, descriptor.media_type or None
        self._landing.add(digest)  # it has a file before it has a row, and is no orphan
        try:
            await self.store.put(digest, spool)
            record = BlobRecord(digest, descriptor.size, media_type, self.clock())
            reservation.release()  # the index counts it from here on, with no await between
            await self.index.set_blob(record, children)
        finally:
            self._landing.discard(digest)

    async def keep(
        self, descriptor: Descriptor, body: bytes, children: Iterable[Child] | None = ()
    ) -> None:
        """Hold a verified manifest and what it lists (None: not known), if there is room."""
        try:
            with ExitStack() as resources:
                reservation = await self.evictor.reserve(len(body))
                resources.callback(reservation.release)
                spool = await self.store.spool(descriptor.digest, len(body))
                resources.callback(spool.close)
                resources.callback(spool.discard)
                await in_thread(lambda: spool.write(body, 0), Pool.WRITE)
                await self.adopt(reservation, spool, descriptor, children)
        except StorageError as error:
            self.trouble(error)

    def _is_here(self, digest: Digest) -> bool:
        """Return whether a blob has a file that can be opened."""
        try:
            file = self.store.open(digest)
        except StorageError as error:
            self.trouble(error)
            return False
        if file is not None:
            file.close()
        return file is not None

    async def _adopt_orphan(self, digest: Digest) -> BlobRecord | None:
        try:
            file = self.store.open(digest)
        except StorageError as error:
            self.trouble(error)
            return None
        if file is None:
            return None
        try:
            return await self._adopted(digest, file)
        finally:
            file.close()
            self.evictor.settled(disk_bytes(file.size))

    async def _adopted(self, digest: Digest, file: BlobFile) -> BlobRecord | None:
        problem = "its bytes are not its name"
        try:
            proven = await in_thread(lambda: _proven(file, digest), Pool.UPKEEP)
        except (OSError, StorageError) as error:
            proven, problem = None, f"it cannot be read: {error}"
        if (record := await self.index.blob(digest)) is not None:  # downloaded anew meanwhile
            return record
        if proven is None:
            await self.set_aside(digest, {"reason": problem})
            return None
        record, children = proven
        await self.index.set_blob(record, children)
        return record

    def trouble(self, error: StorageError) -> None:
        """Count a failure of the disk that is survived; a cache that is full has not failed."""
        if isinstance(error, NoRoom):
            log.info("not kept", reason=str(error))
            return
        self.counters.storage_errors += 1
        log.warning("storage trouble, carried on without", error=str(error))


def _proven(file: BlobFile, digest: Digest) -> tuple[BlobRecord, tuple[Child, ...] | None] | None:
    """Return what a file is, if it is its name, with what it lists; None if it is not.

    Blocks. Raises ``OSError``, ``StorageError``.
    """
    found, offset = Proof(digest), 0
    while chunk := os.pread(file.fd, CHUNK, offset):
        found.take(chunk)
        offset += len(chunk)
    if not found.holds:
        return None
    media_type: str | None = None
    children: tuple[Child, ...] | None = ()
    if file.size <= manifests.MAX_SIZE:
        media_type, children = _understood(file.read())
    return BlobRecord(digest, file.size, media_type, os.fstat(file.fd).st_mtime), children


def _understood(body: bytes) -> tuple[str | None, tuple[Child, ...] | None]:
    """Return a manifest's media type and children; (None, ()) for any other content."""
    if body[:1] not in b"{ \t\r\n":
        return None, ()
    content = manifests.read(body)
    if not content.is_manifest or (content.own_type is None and content.children is None):
        return None, ()
    return content.own_type or content.implied_type, content.listed
