"""What lies here: store, index and evictor as one, each answer checked before it is given.

The disk may lie, fill up or fail at any time; nothing of that leaves this room but as "not held"
or "not kept", and a count.
"""

import asyncio
import json
from collections.abc import Iterable
from contextlib import ExitStack
from weakref import WeakValueDictionary

import structlog

from proxy.errors import StorageError
from proxy.evict import Evictor
from proxy.index import Index
from proxy.metrics import CacheCounters
from proxy.names import Digest, Target
from proxy.records import BlobRecord, Child, Clock, Descriptor, disk_bytes
from proxy.reservations import Arrival, NoRoom, Reservation
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
        self.presumed: set[tuple[Target, Digest]] = set()
        """Links that only names in a restored ``index.json`` speak for; empty unless offline."""
        self._arriving: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()

    async def holds(self, digest: Digest) -> bool:
        """Tell whether content is held, without opening it."""
        return await self.index.blob(digest) is not None

    async def linked(self, target: Target, digest: Digest) -> bool:
        """Return True if content may be served under a repository's name without a question."""
        if self.presumed and (target, digest) in self.presumed:
            return True
        return await self.index.linked(target, digest)

    def public(self, digests: Iterable[Digest]) -> list[Digest]:
        """Return those that are held and public: a mere claim is enough to link them."""
        records = ((digest, self.index.held(digest)) for digest in digests)
        return [digest for digest, record in records if record is not None and record.is_public]

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
        """Never left half done, or the digest could not be stored again.

        A file that cannot be deleted takes its room until the next start counts it anew.
        """
        size = self._condemned(digest)
        await self.index.drop_blobs([digest])
        if not await self.store.delete([digest]):
            self.evictor.unlinked(size)

    def _condemned(self, digest: Digest) -> int:
        """Hold content no longer; return its disk bytes, which count until they are unlinked."""
        record = self.index.held(digest)
        size = 0 if record is None else disk_bytes(record.size)
        self.evictor.condemn(size)
        self.store.condemn([digest])
        return size

    async def set_aside(self, digest: Digest, note: dict[str, object]) -> str | None:
        """Forget content that has gone bad, and keep it for people to look at.

        ``note`` is written beside it if there is room. Returns where it lies, None when it could
        only be deleted.
        """
        self.counters.corrupted += 1
        return await to_its_end(self._set_aside(digest, note))

    async def _set_aside(self, digest: Digest, note: dict[str, object]) -> str | None:
        text = json.dumps({"digest": digest, "found_at": self.clock(), **note}, indent=2) + "\n"
        kept: str | None = None
        size = self._condemned(digest)
        try:
            await self.index.drop_blobs([digest])
            with ExitStack() as resources:
                try:
                    reservation = await self.evictor.reserve(len(text.encode()))
                    resources.callback(reservation.release)
                except NoRoom:
                    text = ""
                kept = await in_thread(lambda: self.store.quarantine.take(digest, text))
        except StorageError as error:
            log.warning("not kept in quarantine", digest=digest, reason=str(error))
        finally:  # whatever happens, or the digest could not be stored again
            if not await self.store.delete([digest]):
                self.evictor.unlinked(size)
        log.error("content has gone bad", digest=digest, kept_as=kept, reason=note.get("reason"))
        return kept

    async def adopt(
        self,
        reservation: Reservation | Arrival,
        spool: Spool,
        descriptor: Descriptor,
        children: Iterable[Child] = (),
        *,
        is_public: bool = False,
    ) -> None:
        """Make a verified spool held content, with what it lists. Raises ``StorageError``.

        Several spools of one digest may be verified at the same time: from two upstreams, or one
        as a manifest and one as a blob. One after the other becomes held content; the later ones
        find the file there, and add only what they know of it.
        """
        digest, media_type = descriptor.digest, descriptor.media_type or None
        async with self._arriving.setdefault(digest, asyncio.Lock()):
            known = await self.index.blob(digest)
            if known is None or not self._has_file(known):
                await self.store.put(digest, spool)
            else:
                if media_type is None and known.is_public >= is_public:
                    self.index.touch(digest)
                    return
                media_type, is_public = media_type or known.media_type, is_public or known.is_public
                children = tuple(children) or self.index.children(digest)
            record = BlobRecord(digest, descriptor.size, media_type, self.clock(), is_public)
            reservation.release()  # the index counts it from here on, with no await between
            await self.index.set_blob(record, children)

    def _has_file(self, record: BlobRecord) -> bool:
        """Return True if the file of a held blob is there, and as long as it should be."""
        try:
            file = self.store.open(record.digest)
        except StorageError as error:
            self.trouble(error)
            return False
        if file is None:
            return False
        file.close()
        return file.size == record.size

    async def keep(
        self,
        descriptor: Descriptor,
        body: bytes,
        children: Iterable[Child] = (),
        *,
        is_public: bool = False,
    ) -> None:
        """Hold a verified manifest and what it lists, if there is room."""
        try:
            with ExitStack() as resources:
                reservation = await self.evictor.reserve(len(body))
                resources.callback(reservation.release)
                spool = await self.store.spool(descriptor.digest, len(body))
                resources.callback(spool.close)
                resources.callback(spool.discard)
                await in_thread(lambda: spool.write(body, 0))
                await self.adopt(reservation, spool, descriptor, children, is_public=is_public)
        except StorageError as error:
            self.trouble(error)

    def trouble(self, error: StorageError) -> None:
        """Count a failure of the disk that is survived; a cache that is full has not failed."""
        if isinstance(error, NoRoom):
            log.info("not kept", reason=str(error))
            return
        self.counters.storage_errors += 1
        log.warning("storage trouble, carried on without", error=str(error))
