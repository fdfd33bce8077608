"""What lies here: store, index and evictor as one, each answer checked before it is given.

The disk may lie, fill up or fail at any time; nothing of that leaves this room but as "not held"
or "not kept", and a count.
"""

import json
from collections.abc import Iterable
from contextlib import ExitStack

import structlog

from proxy.errors import StorageError
from proxy.evict import Evictor, NoRoom, Reservation
from proxy.index import Index
from proxy.metrics import CacheCounters
from proxy.names import Digest
from proxy.records import BlobRecord, Child, Clock, Descriptor, disk_bytes
from proxy.store import BlobFile, BlobStore, Spool
from proxy.threads import in_thread, to_its_end

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

    async def holds(self, digest: Digest) -> bool:
        """Tell whether content is held, without opening it."""
        return await self.index.blob(digest) is not None

    async def open(self, digest: Digest) -> BlobFile | None:
        """Return held content, opened, and count the use; None when it is not (rightly) held."""
        record = await self.index.blob(digest)
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
            return file.read()
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
                kept = await in_thread(lambda: self.store.quarantine.take(digest, text))
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
        await self.store.put(descriptor.digest, spool)
        media_type = descriptor.media_type or None
        record = BlobRecord(descriptor.digest, descriptor.size, media_type, self.clock())
        reservation.release()  # the index counts it from here on, with no await between
        await self.index.set_blob(record, children)

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
                await in_thread(lambda: spool.write(body, 0))
                await self.adopt(reservation, spool, descriptor, children)
        except StorageError as error:
            self.trouble(error)

    def trouble(self, error: StorageError) -> None:
        """Count a failure of the disk that is survived; a cache that is full has not failed."""
        if isinstance(error, NoRoom):
            log.info("not kept", reason=str(error))
            return
        self.counters.storage_errors += 1
        log.warning("storage trouble, carried on without", error=str(error))
