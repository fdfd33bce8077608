"""Copies stored content to the bucket, in the background.

The queue is in memory. A note in the index has the time up to which everything was copied, so that
newer files are checked again after a crash. A large upload is never cancelled while it sends,
because that would leave its parts in the bucket: it is asked to stop, and removes them. The next
start removes the parts that a killed process left.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from proxy.content.local_storage import LocalStorage
from proxy.core.errors import BlobUnknown, StorageError, UpstreamUnavailable
from proxy.core.names import Digest, parse_digest
from proxy.core.records import BlobRecord
from proxy.core.tolerant_json import as_list
from proxy.runtime.executors import Pool, in_thread
from proxy.runtime.pulse import Pulse
from proxy.runtime.token_bucket import TokenBucket
from proxy.storage.bucket.client import PART, BucketClient
from proxy.storage.bucket.object_metadata import ObjectMetadata
from proxy.storage.disk import DiskBlob

CONCURRENCY: Final = 3
"""Concurrent uploads. Each takes up to three parts of ``PART`` bytes of memory."""

RATE: Final = 100_000_000
"""Bytes a second of all uploads together."""

GRACE_SECONDS: Final = 10.0
"""Seconds that a stop waits for uploads. The next start copies the rest."""

STOP_SECONDS: Final = 5.0
"""Seconds that a stop then waits for large uploads to remove their parts."""

NOTE_SECONDS: Final = 30.0
MARGIN_SECONDS: Final = 60.0
"""Files that are older than the note by less are looked at again: between the last write to a file
and its upload there is time."""

MAX_WAITING: Final = 100_000
_RESUME_WAITING: Final = 1000
_STEP: Final = 1024 * 1024
_SWEEP_SECONDS: Final = 86400.0
_NOTE: Final = "bucket copied"
_PARTS: Final = "bucket parts"

log = structlog.get_logger(__name__)


class _StoppedError(Exception):
    """An upload was asked to stop."""


class Uploads:
    """The content that the bucket does not have yet; less than ``smallest`` bytes are not copied.

    ``sweep`` removes abandoned uploads, and those of its first objects, but none of its second. It
    blocks.
    """

    def __init__(
        self,
        client: BucketClient,
        local_storage: LocalStorage,
        *,
        smallest: int,
        sweep: Callable[[Collection[Digest], Collection[Digest]], int],
    ) -> None:
        self._client = client
        self._store, self._index = local_storage.store, local_storage.index
        self._smallest = smallest
        self._sweep = sweep
        self._counters = local_storage.counters
        self._clock = local_storage.clock
        self.is_left_to_others: Callable[[Digest], bool] = lambda _: False
        """Returns True for stored content that another machine uploads."""
        self._waiting: dict[Digest, None] = {}
        self._running: set[Digest] = set()
        self._in_parts: set[Digest] = set()
        self._wrong: set[Digest] = set()
        self._is_behind = True  # not all files were looked at
        self._stopping = asyncio.Event()
        self._noted_at = float("-inf")
        self._changed = Pulse()
        self._pace = TokenBucket(RATE, RATE / 4, time.monotonic())

    @property
    def pending(self) -> int:
        """Content that waits or is being copied."""
        return len(self._waiting) + len(self._running)

    def add(self, digest: Digest) -> None:
        """Copy content that was stored, unless the bucket has it or another machine copies it.

        If that machine dies first, this one copies it after its next start.
        """
        is_wrong = digest in self._wrong
        if not is_wrong and (self._client.has(digest) or self.is_left_to_others(digest)):
            return
        if len(self._waiting) >= MAX_WAITING:
            self._is_behind = True
            return
        self._waiting[digest] = None
        self._changed.beat()

    def replace(self, digest: Digest) -> None:
        """Delete an object whose bytes are wrong, or write it again if the content is held."""
        self._wrong.add(digest)
        self.add(digest)

    async def run(self) -> None:
        """Copy added content, and the rest of an earlier process, until cancelled."""
        await self._clean()  # before the first upload: it removes those of an earlier process
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resume(), name="resume uploads")
            for number in range(CONCURRENCY):
                group.create_task(self._work(), name=f"upload {number}")

    async def close(self) -> None:
        """Wait a limited time for uploads; record the rest for the next start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                while self.pending and not self._client.seconds_left:
                    await self._changed.wait()
        self._stopping.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while self._running:
                    await self._changed.wait()
        await self._note(is_complete=not self.pending)

    async def _resume(self) -> None:
        """Add content that was not copied before this start; then sweep the bucket every day."""
        begun = self._clock()
        name, until, is_complete = await self._read_note()
        since = max(0.0, until - MARGIN_SECONDS) if name == self._client.name else 0.0
        if name != self._client.name or not is_complete:
            log.info("looking for content that the bucket lacks", stored_since=since)
            async for batch in self._store.scan():
                for digest, _, modified_at in batch:
                    if modified_at >= since:
                        self.add(digest)
                while len(self._waiting) > _RESUME_WAITING:
                    await self._changed.wait()
        self._is_behind = False
        await self._set_note(since if self.pending else begun, is_complete=False)
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            await self._clean()

    async def _clean(self) -> None:
        noted = as_list(await self._noted(_PARTS))
        begun = {parse_digest(one) for one in noted if isinstance(one, str)} - self._in_parts
        spared = frozenset(self._in_parts)
        swept = await in_thread(lambda: self._sweep(begun, spared), Pool.UPKEEP)
        if swept:
            log.info("abandoned uploads removed", uploads=swept)
        if begun:
            await self._note_parts()

    async def _work(self) -> None:
        while True:
            while not self._waiting or self._stopping.is_set():
                await self._changed.wait()
            digest = next(iter(self._waiting))
            del self._waiting[digest]
            if digest in self._running:  # added again meanwhile
                continue
            self._running.add(digest)
            try:
                await self._copy(digest)
            except (UpstreamUnavailable, BlobUnknown, _StoppedError):
                self._waiting[digest] = None
            except StorageError as error:
                log.warning("content cannot be copied", digest=digest, error=str(error))
            finally:
                self._running.discard(digest)
                self._changed.beat()
            if not self.pending and time.monotonic() - self._noted_at > NOTE_SECONDS:
                await self._note(is_complete=False)
            await asyncio.sleep(self._client.seconds_left)

    async def _copy(self, digest: Digest) -> None:
        """Upload held content, unless there is an object with the right bytes.

        Raises ``UpstreamUnavailable``, ``StorageError``.
        """
        is_wrong = digest in self._wrong
        if self._client.has(digest) and not is_wrong:
            return
        record = await self._index.blob(digest)
        blob = None if record is None else self._store.open(digest)
        if record is None or blob is None:
            if is_wrong:
                await self._client.delete([digest])
                self._wrong.discard(digest)
            return
        try:
            if record.size >= self._smallest and await self._write(record, blob, is_wrong=is_wrong):
                self._wrong.discard(digest)
                self._counters.bucket_uploads += 1
                self._counters.bucket_uploaded_bytes += record.size
        finally:
            blob.close()

    async def _write(self, record: BlobRecord, blob: DiskBlob, *, is_wrong: bool) -> bool:
        """Write an object; return False if there is one. A wrong one is replaced."""
        digest = record.digest
        holders = frozenset(await self._index.holders(digest))
        metadata = ObjectMetadata(record.media_type, record.is_public, holders)
        if record.size <= PART:
            if is_wrong:
                await self._client.delete([digest])
            data = await in_thread(partial(blob.read, 0, blob.size), Pool.UPKEEP)
            await self._paced(len(data))
            return await self._client.create(digest, data, metadata)
        if self._client.has(digest) is None:
            with suppress(BlobUnknown):
                await self._client.head(digest)
                return False
        self._in_parts.add(digest)
        await self._note_parts()
        try:
            await self._client.write(digest, self._chunks(blob), blob.size, metadata)
        finally:
            self._in_parts.discard(digest)
            await self._note_parts()
        return True

    async def _chunks(self, blob: DiskBlob) -> AsyncGenerator[bytes, None]:
        for start in range(0, blob.size, _STEP):
            if self._stopping.is_set():
                raise _StoppedError
            stop = min(start + _STEP, blob.size)
            data = await in_thread(partial(blob.read, start, stop), Pool.UPKEEP)
            if len(data) != stop - start:
                raise StorageError("a file became shorter")
            await self._paced(len(data))
            yield data

    async def _paced(self, count: int) -> None:
        """Wait until the rate allows so many bytes, or until a stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pace.take(count, time.monotonic())):
                await self._stopping.wait()

    async def _note(self, *, is_complete: bool) -> None:
        """Record that all content up to now is copied, if it is."""
        if not self._is_behind and not self.pending:
            await self._set_note(self._clock(), is_complete=is_complete)

    async def _set_note(self, until: float, *, is_complete: bool) -> None:
        self._noted_at = time.monotonic()
        await self._kept(self._index.set_note(_NOTE, [self._client.name, until, is_complete]))

    async def _note_parts(self) -> None:
        await self._kept(self._index.set_note(_PARTS, sorted(self._in_parts)))

    async def _kept(self, noting: Awaitable[None]) -> None:
        try:
            await noting
        except StorageError as error:
            log.warning("the position of uploads cannot be stored", error=str(error))

    async def _read_note(self) -> tuple[str, float, bool]:
        match await self._noted(_NOTE):
            case [str(name), int() | float() as until, bool(is_complete)]:
                return name, float(until), is_complete
            case _:
                return "", 0.0, False

    async def _noted(self, name: str) -> object:
        try:
            noted: object = await self._index.note(name)
        except StorageError as error:
            log.warning("the position of uploads is not known", error=str(error))
            return None
        return noted
