"""Makes index and store consistent after a crash, or after the index was lost.

Two kinds of difference: a *ghost* is a row without a file, an *orphan* is a file without a row. A
ghost is dropped. An orphan is adopted once its bytes are proven to be its digest: by ``reconcile``
in the background, or earlier when a request wants it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

import structlog

from proxy.content import checks
from proxy.content.eviction import Evictor
from proxy.content.faults import Faults
from proxy.core import manifests
from proxy.core.errors import StorageError, is_disk_error
from proxy.core.names import Digest
from proxy.core.records import BlobRecord, Child, disk_bytes
from proxy.index import Index, pages
from proxy.runtime.executors import Pool, in_thread, in_thread_if_large
from proxy.runtime.singleflight import SingleFlight
from proxy.storage.disk import DiskBlob, DiskSpool, DiskStore

_PAGE: Final = 1000
WATCH_SECONDS: Final = 5.0

_RECONCILED: Final = "reconciled"
"""Note: each file has a row, but for the loose ones. Lost with a row of a damaged index."""

UNREADABLE: Final = -1

Proven = tuple[BlobRecord, tuple[Child, ...] | None]
"""The record of a proven file and its children; None if it cannot be parsed."""

log = structlog.get_logger(__name__)


class Reconciler:
    """Compares rows with files, and gives files their rows."""

    def __init__(self, store: DiskStore, index: Index, evictor: Evictor, faults: Faults) -> None:
        self._store = store
        self._index = index
        self._evictor = evictor
        self._faults = faults
        self._orphans: dict[Digest, int] = {}
        """Disk bytes of orphans, which ``evictor`` counts until they are adopted or gone."""
        self._is_reconciled = False
        self._damaged = index.damaged
        """The damaged index at the last ``reconcile``; another one means that rows were lost."""
        self._is_noted = False
        self._arriving: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()
        self._adoptions: SingleFlight[BlobRecord | None] = SingleFlight("adopt")

    async def begin(self) -> None:
        """Count the files that a killed process left, before anything is stored.

        An index that knew all files also knows which ones were about to get a row or to be deleted.
        Without such an index, ``reconcile`` counts the orphans.
        """
        try:
            self._is_noted = await self._index.note(_RECONCILED) is True
            loose = await self._index.loose_files()
        except StorageError as error:
            self._faults.count_error(error)
            return
        held = await self._index.records(loose)
        sizes = {digest: self.file_size(digest) for digest in loose if digest not in held}
        self._orphans = {
            digest: disk_bytes(max(0, size)) for digest, size in sizes.items() if size is not None
        }
        await self._index.delete_loose_files(set(loose) - self._orphans.keys())
        if self._is_noted:
            self._evictor.set_orphans(sum(self._orphans.values()))

    async def rows_lost(self) -> None:
        """Return once a damaged index was replaced, and there may be orphans."""
        while self._damaged == self._index.damaged:  # noqa: ASYNC110 (an index has no events)
            await asyncio.sleep(WATCH_SECONDS)

    @property
    def _is_settled(self) -> bool:
        """All orphans are adopted: what has no row is not in the store."""
        return self._is_reconciled and self._damaged == self._index.damaged

    async def close(self) -> None:
        """Cancel running work."""
        await self._adoptions.close()

    async def adopt(self, digest: Digest) -> BlobRecord | None:
        """Return the record of an orphan once it is proven; None if there is none, or it is bad.

        So content is not fetched again after the index was lost. It is hashed once for all callers.
        """
        if self._is_settled:
            return None
        return await self._adoptions.do(digest, lambda: self._adopt(digest))

    def lock(self, digest: Digest) -> asyncio.Lock:
        """Return the lock under which a digest gets its file and then its row."""
        return self._arriving.setdefault(digest, asyncio.Lock())

    async def store_file(self, digest: Digest, spool: DiskSpool) -> None:
        """Make a spool the file of a blob; its row must follow. Needs the lock.

        An orphan's file is replaced and no longer counts.
        """
        await self._index.add_loose_files([digest])
        await self._store.put(digest, spool)
        self._settle(digest)

    def file_size(self, digest: Digest) -> int | None:
        """Return the bytes of a blob's file, None for no file, ``UNREADABLE`` on failure."""
        try:
            file = self._store.open(digest)
        except StorageError as error:
            self._faults.count_error(error)
            return UNREADABLE
        if file is None:
            return None
        file.close()
        return file.size

    async def reconcile(self) -> None:
        """Drop all ghosts and adopt all orphans. Raises ``StorageError``; may be called again.

        The evictor learns the bytes of all orphans before the first one is adopted, so that the
        limit holds meanwhile.
        """
        started = time.perf_counter()
        try:
            adopted, dropped = await self._reconcile()
        except StorageError as error:
            self._evictor.report_unreadable(str(error))
            raise
        took = round(time.perf_counter() - started, 3)
        log.info("reconciled", adopted=adopted, dropped=dropped, seconds=took)

    async def _reconcile(self) -> tuple[int, int]:
        if self._damaged != self._index.damaged:
            self._damaged, self._is_noted = self._index.damaged, False
            self._is_reconciled = False
            self._evictor.forget_orphans()
        found = {d: disk_bytes(size) async for page in self._without_row() for d, size in page}
        held = await self._index.records(found)  # some have got their row meanwhile
        self._orphans = {digest: size for digest, size in found.items() if digest not in held}
        self._evictor.set_orphans(sum(self._orphans.values()))
        await self._note_orphans()
        adopted, dropped = 0, await self._drop_ghosts()
        for digest in list(self._orphans):
            if await self._index.blob(digest) is not None:  # downloaded meanwhile
                self._settle(digest)
            else:
                adopting = self._adoptions.do(digest, partial(self._adopt, digest))
                adopted += await adopting is not None
        # A file that cannot be opened goes on counting, because it takes its room.
        await self._note_orphans()
        async for incomplete in pages(self._index.incomplete, lambda digest: digest, _PAGE):
            for digest in incomplete:
                await self._complete(digest)
        self._is_reconciled = True
        return adopted, dropped

    async def _note_orphans(self) -> None:
        """Note whether there are orphans, so that the next start need not look at all files."""
        if self._is_noted is bool(self._orphans):
            self._is_noted = not self._orphans
            await self._index.set_note(_RECONCILED, self._is_noted)

    async def _without_row(self) -> AsyncIterator[list[tuple[Digest, int]]]:
        async for batch in self._store.scan():
            held = await self._index.records(digest for digest, *_ in batch)
            yield [(digest, size) for digest, size, _ in batch if digest not in held]

    async def _drop_ghosts(self) -> int:
        """Drop rows without a file; return their number.

        A file that cannot be opened is not known to be missing, so its row stays.
        """
        dropped = 0
        async for page in pages(self._index.blobs, lambda record: record.digest, _PAGE):
            missing = await in_thread(partial(self._missing, page), Pool.UPKEEP)
            if missing:  # some may have been stored or evicted meanwhile
                held = await self._index.records(missing)
                ghosts = self._missing(held.values())
                await self._index.drop_blobs(ghosts)
                await self._index.delete_loose_files(ghosts)
                dropped += len(ghosts)
        return dropped

    def _missing(self, records: Iterable[BlobRecord]) -> list[Digest]:
        """Return those that have no file."""
        return [record.digest for record in records if self.file_size(record.digest) is None]

    async def _complete(self, digest: Digest) -> None:
        """Record what a manifest lists whose row does not say so, as old rows do not."""
        try:
            if (file := self._store.open(digest)) is None:
                return
            try:
                body = await in_thread(lambda: file.read(0, file.size))
            finally:
                file.close()
        except StorageError as error:
            self._faults.count_error(error)
            return
        listed = (await in_thread_if_large(len(body), lambda: manifests.read(body))).listed
        if listed is not None and (record := await self._index.blob(digest)):
            await self._index.set_blob(record, listed)

    async def _adopt(self, digest: Digest) -> BlobRecord | None:
        """Prove a file and give it its row; a bad one goes to quarantine.

        All under the lock: a download lands before, and its row is here, or it lands afterwards.
        In between it would replace the file that is being hashed, and the good file would be set
        aside in place of the bad one.
        """
        async with self.lock(digest):
            if (record := await self._index.blob(digest)) is not None:  # downloaded meanwhile
                return record
            try:
                file = self._store.open(digest)
            except StorageError as error:
                self._faults.count_error(error)
                return None
            if file is None:
                self._settle(digest)
                return None
            problem = "its bytes are not its name"
            try:
                proven = await prove(file, digest)
            except (OSError, StorageError) as error:
                if not is_disk_error(error):
                    log.warning("content could not be adopted", digest=digest, error=str(error))
                    return None
                proven, problem = None, f"it cannot be read: {error}"
            finally:
                file.close()
            if proven is None:
                await self._faults.quarantine(digest, {"reason": problem})
                if self.file_size(digest) is None:
                    self._settle(digest)
                return None
            self._settle(digest)  # the index counts it from here on, with no await between
            await self._index.set_blob(*proven)
            return proven[0]

    def _settle(self, digest: Digest) -> None:
        """Count the file of an orphan no more; a second call changes nothing."""
        if size := self._orphans.pop(digest, 0):
            self._evictor.subtract_orphan(size)


async def prove(file: DiskBlob, digest: Digest) -> Proven | None:
    """Return what a file is, None if its bytes are not ``digest``.

    Raises ``OSError``, ``StorageError``.
    """
    verifier = await checks.hashed(file, digest, checks.no_pause, checks.keep_cached)
    if not verifier.is_valid:
        return None
    media_type: str | None = None
    children: tuple[Child, ...] | None = ()
    if file.size <= manifests.MAX_SIZE:
        body = await in_thread(lambda: file.read(0, file.size))
        media_type, children = await in_thread_if_large(len(body), lambda: _understood(body))
    return BlobRecord(digest, file.size, media_type, file.modified_at), children


def _understood(body: bytes) -> tuple[str | None, tuple[Child, ...] | None]:
    """Return a manifest's media type and what it lists; (None, ()) for any other content."""
    if body[:1] not in b"{ \t\r\n":
        return None, ()
    content = manifests.read(body)
    if not content.is_manifest or (content.own_type is None and content.children is None):
        return None, ()
    return content.own_type or content.implied_type, content.listed
