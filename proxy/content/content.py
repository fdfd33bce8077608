"""The interface to storage and index.

Modules above use ``Content`` and its parts, never a store or an index. The disk may return wrong
data, fill up or fail at any time: callers then learn that content is not held, or is not stored,
and the failure is counted here.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Final

from proxy.content.eviction import Evictor
from proxy.content.facts import Graph, Links, Tags
from proxy.content.faults import Faults
from proxy.content.notices import Cached
from proxy.content.reconciler import Reconciler
from proxy.content.reservations import BodyReservation, Reservation
from proxy.content.writer import Writer
from proxy.core.errors import StorageError
from proxy.core.names import Digest, Target
from proxy.core.records import BlobRecord, Child, Clock, Descriptor
from proxy.index import Index, pages
from proxy.runtime.executors import Pool, in_thread
from proxy.runtime.metrics import CacheCounters
from proxy.storage.disk import DiskBlob, DiskSpool, DiskStore

MAX_LOOKED_AT: Final = 8 * 1024 * 1024
_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of the cache. All bytes are disk bytes.

    ``used_bytes`` is everything that counts towards ``limit_bytes``: ``held_bytes`` of ``files``
    blobs and manifests, downloads, quarantine and the index.
    """

    files: int
    held_bytes: int
    used_bytes: int
    limit_bytes: int
    quarantined_bytes: int
    index_bytes: int
    index_dropped_rows: int


class Content:
    """The content of this cache, and the parts that describe and maintain it.

    Verbs of the index are documented there.
    """

    def __init__(
        self,
        store: DiskStore,
        index: Index,
        evictor: Evictor,
        counters: CacheCounters,
        clock: Clock,
    ) -> None:
        self._store = store
        self._index = index
        self.clock: Final = clock
        self.evictor: Final = evictor
        self.faults: Final = Faults(store, index, evictor, counters, clock)
        self.reconciler: Final = Reconciler(store, index, evictor, self.faults)
        self.graph: Final = Graph(index)
        self.tags: Final = Tags(index)
        self.links: Final = Links(index)
        self.record: Final = index.blob
        self.records: Final = index.records
        self.touch: Final = index.touch
        self.note: Final = index.note
        self.set_note: Final = index.set_note
        self.on_stored: Final[list[Callable[[Digest], None]]] = []
        """Called, in the loop, with the digest of content that was stored, once it is linked."""
        self.on_cached: Final[list[Callable[[Cached], None]]] = []
        """Called with newly held content, after ``on_stored``."""

    async def find(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content; a file that has lost its row gets it again first."""
        return await self._index.blob(digest) or await self.reconciler.adopt(digest)

    async def holds(self, digest: Digest) -> bool:
        """Return True if content is held, as ``find`` does."""
        return await self.find(digest) is not None

    async def is_public(self, digest: Digest) -> bool:
        """Return True if content is held that its upstream serves to every client."""
        record = await self.record(digest)
        return record is not None and record.is_public

    async def open(self, digest: Digest) -> DiskBlob | None:
        """Return held content, opened, and count a use; None if it is not held or is damaged."""
        record = await self.find(digest)
        if record is None:
            return None
        try:
            file = self._store.open(digest)
        except StorageError as error:
            self.faults.count_error(error)
            return None
        if file is not None and file.size == record.size:
            self.touch(digest)
            return file
        if file is not None:
            file.close()
        await self.faults.drop(digest, reason="the file is missing or has another size")
        return None

    async def read_untouched(self, digest: Digest) -> bytes | None:
        """Return small content completely, as ``read`` does, but count no use."""
        record = await self.find(digest)
        if record is None or record.size > MAX_LOOKED_AT:
            return None
        try:
            file = self._store.open(digest)
            if file is None:
                return None
            with closing(file):
                return await in_thread(lambda: file.read(0, file.size))
        except StorageError as error:
            self.faults.count_error(error)
            return None

    async def read(self, digest: Digest) -> bytes | None:
        """Return small content completely, and count a use."""
        file = await self.open(digest)
        if file is None:
            return None
        try:
            return await in_thread(lambda: file.read(0, file.size))
        except StorageError as error:
            self.faults.count_error(error)
            return None
        finally:
            file.close()

    def read_cached(self, record: BlobRecord) -> bytes | None:
        """Return held content if the page cache has all of it, and count a use.

        None does not mean absence: then use ``read``.
        """
        try:
            file = self._store.open(record.digest)
        except StorageError as error:
            self.faults.count_error(error)
            return None
        if file is None:
            return None
        try:
            body = file.read_cached() if file.size == record.size else None
        finally:
            file.close()
        if body is not None:
            self.touch(record.digest)
        return body

    def peek(self, target: Target, digest: Digest) -> BlobRecord | None:
        """Return the record of held content that a repository may serve; None may be wrong."""
        if not self._index.peek_linked(target, digest):
            return None
        return self._index.peek_blob(digest)

    def peek_use(self, target: Target, digest: Digest) -> bool:
        """Return True and count the use if a repository is known to hold content that is held."""
        if self.peek(target, digest) is None:
            return False
        self.touch(digest)
        return True

    async def adopt(
        self,
        reservation: Reservation | BodyReservation,
        spool: DiskSpool,
        descriptor: Descriptor,
        children: Iterable[Child] | None = (),
        *,
        is_public: bool = False,
    ) -> bool:
        """Make a verified spool held content, with its children; return True if it was not held.

        Raises ``StorageError``.

        Several spools of one digest may be verified at the same time: from two upstreams, or one
        as a manifest and one as a blob. They are stored one after the other. The later ones find
        the file, and only add their facts about it.
        """
        digest, media_type = descriptor.digest, descriptor.media_type or None
        async with self.reconciler.lock(digest):
            known = await self._index.blob(digest)
            is_new = known is None or self.reconciler.file_size(digest) != known.size
            if known is None or is_new:
                await self.reconciler.store_file(digest, spool)
                await self._index.blob(digest)  # into RAM, so that the next does not suspend before
                reservation.release()  # the index counts it from here on
            else:
                if media_type is None and known.is_public >= is_public:
                    self.touch(digest)
                    return False
                media_type = media_type or known.media_type
                is_public = is_public or known.is_public
                if not children:
                    known_children = await self._index.children(digest)
                    children = children if known_children is None else known_children
            record = BlobRecord(digest, descriptor.size, media_type, self.clock(), is_public)
            await self._index.set_blob(record, children)
            self.touch(digest)  # also warmer than what was used before the clock was set back
        for stored in self.on_stored:
            stored(digest)
        return is_new

    def arrived(self, cached: Cached) -> None:
        """Notify listeners of content that was not held before ``adopt``."""
        for listener in self.on_cached:
            listener(cached)

    async def writer(self, target: Target, digest: Digest, size: int | None) -> Writer:
        """Return a writer with space for a blob of ``size`` bytes (None: not announced).

        Raises ``StorageError``, which is ``NoSpace`` if there is too little.
        """
        room = await self.evictor.reserve_body(target.upstream, size)
        return await self._writer(target, digest, size, room)

    async def trusted_writer(self, target: Target, digest: Digest, size: int) -> Writer:
        """Return a writer for a blob that an operator brings: any other content may be evicted.

        Raises as ``writer``.
        """
        room = await self.evictor.reserve_body(None, size)
        return await self._writer(target, digest, size, room)

    async def _writer(
        self, target: Target, digest: Digest, size: int | None, room: BodyReservation
    ) -> Writer:
        try:
            spool = await self._store.spool(digest, None)
        except BaseException:
            room.release()
            raise
        writer = Writer(self, target, digest, spool, room)
        writer.size = size
        return writer

    async def store_manifest(
        self,
        descriptor: Descriptor,
        body: bytes,
        children: Iterable[Child] | None = (),
        *,
        is_public: bool = False,
    ) -> bool:
        """Store a verified manifest and its children (None: unknown), if there is space.

        Returns True if it is held now and was not before.
        """
        try:
            with ExitStack() as resources:
                reservation = await self.evictor.reserve(len(body))
                resources.callback(reservation.release)
                spool = await self._store.spool(descriptor.digest, len(body))
                resources.callback(spool.close)
                resources.callback(spool.discard)
                await in_thread(lambda: spool.write(body, 0), Pool.WRITE)
                return await self.adopt(
                    reservation, spool, descriptor, children, is_public=is_public
                )
        except StorageError as error:
            self.faults.count_error(error)
            return False

    async def publish(self, digests: Iterable[Digest]) -> None:
        """Record that every client may get held content. Raises ``StorageError``."""
        for digest, record in (await self._index.records(digests)).items():
            if not record.is_public:
                children = await self._index.children(digest)
                await self._index.set_blob(replace(record, is_public=True), children)

    async def prune(self, age: float) -> int:
        """Delete rows about content that is not held and was not confirmed for ``age`` seconds.

        Returns the number of rows. Raises ``StorageError``.
        """
        return await self._index.prune(self.clock() - age)

    async def digests(self, after: str = "") -> AsyncIterator[list[Digest]]:
        """Yield all held content, in a fixed order, in batches; ``after`` starts behind a digest.

        Content that is added or removed meanwhile may be included or not.
        """
        first = Digest(after) if after else None
        async for page in pages(self._index.blobs, lambda record: record.digest, _BATCH, first):
            yield [record.digest for record in page]

    @property
    def revision(self) -> int:
        """Grows whenever a tag moves, or the held or linked manifests change."""
        return self._index.revision

    def usage(self) -> Usage:
        """Return the usage of the cache."""
        held = self._index.usage()
        return Usage(
            files=held.files,
            held_bytes=held.disk_bytes,
            used_bytes=self.evictor.used,
            limit_bytes=self.evictor.limit,
            quarantined_bytes=self._store.quarantine.bytes,
            index_bytes=self._index.file_bytes,
            index_dropped_rows=self._index.dropped_rows,
        )

    def failures(self) -> dict[str, str]:
        """Return why content is not fully known, by the part that failed; empty if it is.

        An index that cannot be written is not included: it has all facts until the next start.
        """
        problem = self.evictor.failure
        return {} if problem is None else {"storage": problem}
