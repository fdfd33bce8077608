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

from proxy.content.eviction import Evictor
from proxy.content.proof import hash_stored
from proxy.content.reservations import Arrival, NoRoom, Reservation
from proxy.content.writer import Writer
from proxy.core import manifests
from proxy.core.errors import ContentMismatch, StorageError, is_disk_error
from proxy.core.names import Digest, DigestVerifier, Target
from proxy.core.records import BlobRecord, Child, Clock, Descriptor, disk_bytes
from proxy.index import Index
from proxy.runtime.executors import Pool, in_thread, to_its_end
from proxy.runtime.metrics import CacheCounters
from proxy.runtime.singleflight import SingleFlight
from proxy.storage import Blob, BlobStore, Spool

log = structlog.get_logger(__name__)


class Content:
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
        self.is_settled = False
        """Index and store agree: what has no row is not here."""
        self.orphans: dict[Digest, int] = {}
        """Disk bytes of files without a row, which ``evictor`` counts until they are adopted."""
        self._landing: set[Digest] = set()
        self._adoptions: SingleFlight[BlobRecord | None] = SingleFlight("adopt")

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

    async def linked(self, target: Target, digest: Digest) -> bool:
        """Return True if content may be served under a repository's name without a question."""
        if self.presumed and (target, digest) in self.presumed:
            return True
        return await self.index.linked(target, digest)

    def public(self, digests: Iterable[Digest]) -> list[Digest]:
        """Return those that are held and public: a mere claim is enough to link them."""
        records = ((digest, self.index.held(digest)) for digest in digests)
        return [digest for digest, record in records if record is not None and record.is_public]

    async def open(self, digest: Digest) -> Blob | None:
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
            return await in_thread(lambda: file.read(0, file.size))
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
                kept = await in_thread(lambda: self.store.quarantine.take(digest, text), Pool.SYNC)
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
        children: Iterable[Child] | None = (),
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
                await self._land(digest, spool)
                reservation.release()  # the index counts it from here on, with no await between
            else:
                if media_type is None and known.is_public >= is_public:
                    self.index.touch(digest)
                    return
                media_type = media_type or known.media_type
                is_public = is_public or known.is_public
                if not children and not self.index.is_incomplete(digest):
                    children = self.index.children(digest)
            record = BlobRecord(digest, descriptor.size, media_type, self.clock(), is_public)
            await self.index.set_blob(record, children)

    async def _land(self, digest: Digest, spool: Spool) -> None:
        """Make a spool the blob ``digest``. It has a file before it has a row, and is no orphan.

        It replaces the file of an orphan, which must not count any more.
        """
        self._landing.add(digest)
        try:
            await self.store.put(digest, spool)
        finally:
            self._landing.discard(digest)
        self._settle_orphan(digest)

    def _settle_orphan(self, digest: Digest) -> None:
        """Count the file of an orphan no more; twice does no harm."""
        self.evictor.settled(self.orphans.pop(digest, 0))

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

    async def writer(self, target: Target, digest: Digest, size: int | None) -> Writer:
        """Return a writer with room for a blob of ``size`` bytes (None: not announced).

        Raises ``StorageError``, which is ``NoRoom`` if there is too little.
        """
        room = await self.evictor.arrival(target.upstream, size)
        try:
            spool = await self.store.spool(digest, None)
        except BaseException:
            room.release()
            raise
        writer = Writer(self, target, digest, spool, room)
        writer.size = size
        return writer

    def mismatched(self, error: ContentMismatch) -> None:
        """Count and log a body whose bytes are not its digest."""
        self.counters.mismatches += 1
        log.error("content mismatch", error=error.message)

    async def keep(
        self,
        descriptor: Descriptor,
        body: bytes,
        children: Iterable[Child] | None = (),
        *,
        is_public: bool = False,
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
                await self.adopt(reservation, spool, descriptor, children, is_public=is_public)
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
            record = await self._adopted(digest, file)
        finally:
            file.close()
        if record is not None or not self._is_here(digest):
            self._settle_orphan(digest)
        return record

    async def _adopted(self, digest: Digest, file: Blob) -> BlobRecord | None:
        problem = "its bytes are not its name"
        try:
            proven = await in_thread(lambda: _proven(file, digest), Pool.UPKEEP)
        except (OSError, StorageError) as error:
            if not is_disk_error(error):
                log.warning("content could not be adopted", digest=digest, error=str(error))
                return None
            proven, problem = None, f"it cannot be read: {error}"
        # A download may replace the file meanwhile. Its row follows the file, so without the lock
        # the good file would be set aside in place of the bad one.
        async with self._arriving.setdefault(digest, asyncio.Lock()):
            if (record := await self.index.blob(digest)) is not None:  # downloaded anew meanwhile
                return record
            if proven is None:
                await self.set_aside(digest, {"reason": problem})
                return None
            record, children = proven
            self._settle_orphan(digest)  # the index counts it from here on, with no await between
            await self.index.set_blob(record, children)
            return record

    def trouble(self, error: StorageError) -> None:
        """Count a failure of the disk that is survived; a cache that is full has not failed."""
        if isinstance(error, NoRoom):
            log.info("not kept", reason=str(error))
            return
        self.counters.storage_errors += 1
        log.warning("storage trouble, carried on without", error=str(error))


def _proven(file: Blob, digest: Digest) -> tuple[BlobRecord, tuple[Child, ...] | None] | None:
    """Return what a file is, if it is its name, with what it lists; None if it is not.

    Blocks. Raises ``OSError``, ``StorageError``.
    """
    found = DigestVerifier(digest)
    hash_stored(found, file, 0, file.size)
    if not found.holds:
        return None
    media_type: str | None = None
    children: tuple[Child, ...] | None = ()
    if file.size <= manifests.MAX_SIZE:
        media_type, children = _understood(file.read(0, file.size))
    return BlobRecord(digest, file.size, media_type, file.modified_at), children


def _understood(body: bytes) -> tuple[str | None, tuple[Child, ...] | None]:
    """Return a manifest's media type and children; (None, ()) for any other content."""
    if body[:1] not in b"{ \t\r\n":
        return None, ()
    content = manifests.read(body)
    if not content.is_manifest or (content.own_type is None and content.children is None):
        return None, ()
    return content.own_type or content.implied_type, content.listed
