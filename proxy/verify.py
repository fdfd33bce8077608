"""Proves held content anew: hashes every file, sets aside what has gone bad, fetches it again.

Goes through the digests in order and notes how far it has come, so that it may be interrupted.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeVar

import structlog

from proxy.cache.holdings import Holdings
from proxy.errors import Conflict, RegistryError, StorageError
from proxy.images import broken_by
from proxy.names import Digest, Proof, Target
from proxy.records import BlobRecord
from proxy.store import BlobFile
from proxy.threads import Pool, in_thread, to_its_end

CHUNK: Final = 1024 * 1024
REPORT_SECONDS: Final = 0.5
NOTE_SECONDS: Final = 5.0
SHELVES: Final = 256
_NOTE: Final = "verify"
_COLD_SECONDS: Final = 86400.0

Fetch = Callable[[Target, Digest, str | None], Awaitable[bool]]
"""Has content fetched anew: from where, what, and its media type, None for a blob."""

Event = dict[str, Any]
Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class Verifier:
    """One verification at a time."""

    def __init__(self, holdings: Holdings, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._holdings = holdings
        self._index = holdings.index
        self._fetch = fetch
        self._clock = clock
        self._is_running = False
        self._after = ""
        self._blobs = self._bytes = self._reading = self._bad = self._repaired = 0

    async def run(self, *, repair: bool, rate: int, restart: bool) -> AsyncGenerator[Event]:
        """Verify all that is held, at ``rate`` bytes a second (0: as fast as it goes).

        Yields what happens: start, progress, bad, done. Goes on where the last run was broken off
        unless ``restart``. Raises ``Conflict`` when another one runs.
        """
        if self._is_running:
            raise Conflict("a verification is running; wait for its end, or interrupt it")
        self._is_running = True
        try:
            await self._index.ready()
            await self._recall(restart=restart)
            async with aclosing(self._round(_Pace(rate), repair=repair)) as events:
                async for event in events:
                    yield event
        finally:
            self._is_running = False

    async def scrub(self, every: float, rate: int) -> None:
        """Verify and repair in the background for ever, beginning a round each ``every`` s."""
        while True:
            noted = await self._noted()
            done_at = noted.get("done_at") if isinstance(noted, dict) else None
            if done_at is None and noted is None:
                done_at = self._clock()  # what is new needs no proof yet
                await self._keep({"done_at": done_at})
            await asyncio.sleep(max(0.0, (done_at or 0.0) + every - self._clock()))
            try:
                async with aclosing(self.run(repair=True, rate=rate, restart=False)) as events:
                    async for event in events:
                        match event:
                            case {"event": "start" | "done" as stage, **counted}:
                                log.info("scrub", stage=stage, **counted)
            except Conflict:
                await asyncio.sleep(60)

    async def _round(self, pace: "_Pace", *, repair: bool) -> AsyncGenerator[Event]:
        """Go through what is left, and note in any case how far it has come."""
        usage, is_done = self._index.usage(), False
        sizes = {"blobs": usage.files, "bytes": usage.disk_bytes}
        try:
            yield {"event": "start", **sizes, "resumed": bool(self._after)}
            async for event in self._walk(pace, repair=repair):
                yield event
            is_done = True
        finally:
            await to_its_end(self._note(done=is_done))
        yield {"event": "done", **self._so_far(), "bad": self._bad, "repaired": self._repaired}

    async def _walk(self, pace: "_Pace", *, repair: bool) -> AsyncGenerator[Event]:
        reported = noted = time.monotonic()
        first = int(self._after.partition(":")[2][:2] or "0", 16)
        for number in range(first, SHELVES):
            for digest in self._index.shelf(number):
                if (len(digest), digest) <= (len(self._after), self._after) and number == first:
                    continue
                async with _working(self._problem(digest, pace)) as hashing:
                    while not (await asyncio.wait([hashing], timeout=REPORT_SECONDS))[0]:
                        yield {"event": "progress", **self._so_far()}
                problem, size = hashing.result()
                self._count(digest, size)
                if problem is not None:
                    self._bad += 1
                    yield await self._set_right(digest, problem, repair=repair)
                if (now := time.monotonic()) - reported >= REPORT_SECONDS:
                    reported = now
                    yield {"event": "progress", **self._so_far()}
                if now - noted >= NOTE_SECONDS:
                    noted = now
                    await self._note(done=False)
            await asyncio.sleep(0)

    def _count(self, digest: Digest, size: int | None) -> None:
        """Note that content has been looked at, and hashed unless it could not be read."""
        self._after, self._reading = digest, 0
        if size is not None:
            self._blobs += 1
            self._bytes += size
            self._holdings.counters.verified += 1
            self._holdings.counters.verified_bytes += size

    async def _problem(self, digest: Digest, pace: "_Pace") -> tuple[Event | None, int | None]:
        """Return what is wrong with held content, None for nothing, and how much was hashed."""
        record = self._index.held(digest)
        if record is None:
            return None, None
        try:
            file = self._holdings.store.open(digest)
        except StorageError as error:
            return {"reason": str(error)}, None
        if file is None:
            return {"reason": "its file is missing"}, None
        try:
            found = await self._hash(file, record, pace)
        except OSError as error:
            return {"reason": f"it cannot be read: {error.strerror}"}, None
        finally:
            file.close()
        if found.holds:
            return None, file.size
        differs = {"size": record.size, "size_found": file.size, "digest_found": found.found}
        return {"reason": "its bytes are not its name"} | differs, file.size

    async def _hash(self, file: BlobFile, record: BlobRecord, pace: "_Pace") -> Proof:
        """Hash a file; what nobody has used for long is not left in the page cache."""
        proof, offset = Proof(record.digest), 0
        is_cold = self._clock() - record.used_at > _COLD_SECONDS

        def step() -> int:
            chunk = os.pread(file.fd, CHUNK, offset)
            proof.take(chunk)
            if is_cold:
                os.posix_fadvise(file.fd, offset, len(chunk), os.POSIX_FADV_DONTNEED)
            return len(chunk)

        while size := await in_thread(step, Pool.UPKEEP):
            offset += size
            self._reading = offset
            await pace.wait(size)
        return proof

    async def _set_right(self, digest: Digest, problem: Event, *, repair: bool) -> Event:
        images = broken_by(self._index, digest)
        record = self._index.held(digest)
        media_type = None if record is None else record.media_type
        holders = await self._index.holders(digest)
        note = problem | {"images": images, "repositories": [str(holder) for holder in holders]}
        kept = await self._holdings.set_aside(digest, note)
        repaired = None
        if repair:
            repaired = await self._refetch(digest, media_type, holders)
            self._repaired += repaired
            self._holdings.counters.repaired += repaired
        return {
            "event": "bad",
            "digest": digest,
            "reason": problem["reason"],
            "quarantined": kept,
            "repaired": repaired,
            "images": images,
        }

    async def _refetch(self, digest: Digest, media_type: str | None, holders: list[Target]) -> bool:
        for target in reversed(holders):
            try:
                if await self._fetch(target, digest, media_type):
                    return True
            except RegistryError as error:
                log.info("not repaired", target=str(target), digest=digest, reason=error.message)
        return False

    def _so_far(self) -> dict[str, int]:
        return {"blobs": self._blobs, "bytes": self._bytes + self._reading}

    async def _noted(self) -> Any:
        """Return how far former runs have come; what cannot be read is begun anew."""
        try:
            return await self._index.note(_NOTE)
        except StorageError:
            return {}

    async def _recall(self, *, restart: bool) -> None:
        noted = await self._noted()
        left = noted if isinstance(noted, dict) and not restart else {}
        self._after, self._reading = str(left.get("after", "")), 0
        self._blobs, self._bytes = int(left.get("blobs", 0)), int(left.get("bytes", 0))
        self._bad, self._repaired = int(left.get("bad", 0)), int(left.get("repaired", 0))

    async def _note(self, *, done: bool) -> None:
        counted = {"blobs": self._blobs, "bytes": self._bytes}
        counted |= {"bad": self._bad, "repaired": self._repaired}
        await self._keep({"done_at": self._clock()} if done else {"after": self._after} | counted)

    async def _keep(self, note: Event) -> None:
        try:
            await self._index.set_note(_NOTE, note)
        except StorageError as error:
            log.warning("how far verification has come cannot be noted", error=str(error))


@asynccontextmanager
async def _working(work: Coroutine[Any, Any, Result]) -> AsyncIterator[asyncio.Task[Result]]:
    """Have work done beside; it has ended, or been broken off, when the context is left."""
    task = asyncio.create_task(work, name="verify")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


class _Pace:
    """Keeps reading below a rate in bytes a second; 0 is no limit."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._ahead_of = time.monotonic()

    async def wait(self, size: int) -> None:
        """Wait until ``size`` more bytes may have been read."""
        if self._rate <= 0:
            await asyncio.sleep(0)
            return
        now = time.monotonic()
        self._ahead_of = max(self._ahead_of, now - 1) + size / self._rate
        await asyncio.sleep(max(0.0, self._ahead_of - now))
