"""Proves held content anew: hashes every file, sets aside what has gone bad, fetches it again.

Goes through the digests in order and notes how far it has come, so that it may be interrupted.
"""

import asyncio
import os
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
)
from contextlib import aclosing
from typing import Any, Final, TypeVar

import structlog

from proxy.content.content import Content
from proxy.core.errors import Conflict, RegistryError, StorageError, is_disk_error
from proxy.core.names import Digest, DigestVerifier, Target
from proxy.core.records import BlobRecord, disk_bytes
from proxy.core.tolerant_json import as_list
from proxy.runtime.executors import Pool, in_thread, to_its_end
from proxy.runtime.supervisor import running_beside
from proxy.services import missing
from proxy.services.inventory import broken_by
from proxy.storage import BlobFile

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


class _StoppedError(Exception):
    """The verification is to end."""


class Verifier:
    """One verification at a time."""

    def __init__(
        self,
        content: Content,
        fetch: Fetch,
        clock: Callable[[], float],
        pinned: Callable[[], Iterable[Digest]] = tuple,
    ) -> None:
        """``pinned`` returns the manifests of pinned images, held or not."""
        self._content = content
        self._pinned = pinned
        self._lost = missing.Lost(None)
        self._tried: set[Digest] = set()
        self._counted: set[Digest] = set()
        self._index = content.index
        self._fetch = fetch
        self._clock = clock
        self._is_running = self._is_stopping = False
        self._after = ""
        self._blobs = self._bytes = self._reading = self._bad = self._repaired = 0

    def stop(self) -> None:
        """End what runs, soon and for good: its events end without ``done``."""
        self._is_stopping = True

    async def run(self, *, repair: bool, rate: int, restart: bool) -> AsyncGenerator[Event]:
        """Verify all that is held, at ``rate`` bytes a second (0: as fast as it goes).

        Yields what happens: start, progress, bad, done. Goes on where the last run was broken off
        unless ``restart``. Without ``done`` at its end it was stopped. Raises ``Conflict`` when
        another one runs.
        """
        if self._is_running:
            raise Conflict("a verification is running; wait for its end, or interrupt it")
        self._is_running = True
        try:
            await self._index.ready()
            self._tried.clear()
            await self._recall(restart=restart)
            async with aclosing(self._round(_Pace(rate), repair=repair)) as events:
                async for event in events:
                    yield event
        except _StoppedError:
            log.info("verification stopped; the next one goes on from there")
        finally:
            self._is_running = False

    async def scrub(self, every: float, rate: int) -> None:
        """Verify and repair in the background until ``stop``, a round each ``every`` seconds."""
        while not self._is_stopping:
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
            async for event in self._complete(repair=repair):
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
                self._check_stop()
                async with running_beside(self._problem(digest, pace), "verify") as hashing:
                    while not (await asyncio.wait([hashing], timeout=REPORT_SECONDS))[0]:
                        self._check_stop()
                        yield {"event": "progress", **self._so_far()}
                problem, size = hashing.result()
                self._count(digest, size)
                if problem is not None:
                    self._count_bad(digest)
                    righting = self._set_right(digest, problem, repair=repair)
                    yield await self._unless_stopped(righting)
                if (now := time.monotonic()) - reported >= REPORT_SECONDS:
                    reported = now
                    yield {"event": "progress", **self._so_far()}
                if now - noted >= NOTE_SECONDS:
                    noted = now
                    await self._note(done=False)
            await asyncio.sleep(0)

    def _count_bad(self, digest: Digest) -> None:
        """Count a piece once a round, also when the round is interrupted and goes on later."""
        if digest not in self._counted:
            self._bad += 1
            self._counted.add(digest)

    async def _complete(self, *, repair: bool) -> AsyncGenerator[Event]:
        """Report what images lack, and fetch it if ``repair``; what comes may lack more."""
        while True:
            found = await missing.find(self._content, self._lost, self._pinned())
            pieces = [piece for piece in found if piece.digest not in self._tried]
            if not pieces:
                return
            for piece in pieces:
                self._tried.add(piece.digest)
                self._count_bad(piece.digest)
                holders = await missing.holders(self._index, piece.digest) if repair else None
                repairing = self._repair(piece.digest, piece.media_type, holders)
                outcome = await self._unless_stopped(repairing)
                known = {"digest": piece.digest, "reason": piece.reason, "images": piece.images}
                yield {"event": "bad", "quarantined": None} | known | outcome

    def _count(self, digest: Digest, size: int | None) -> None:
        """Note that content has been looked at, and hashed unless it could not be read."""
        self._after, self._reading = digest, 0
        if size is not None:
            self._blobs += 1
            self._bytes += disk_bytes(size)  # as the sum at the start counts
            self._content.counters.verified += 1
            self._content.counters.verified_bytes += size

    async def _problem(self, digest: Digest, pace: "_Pace") -> tuple[Event | None, int | None]:
        """Return what is wrong with held content, None for nothing, and how much was hashed."""
        record = self._index.held(digest)
        if record is None:
            return None, None
        try:
            file = self._content.store.open(digest)
        except StorageError as error:
            if not is_disk_error(error):
                log.warning("content could not be verified", digest=digest, error=str(error))
                return None, None
            return {"reason": str(error)}, None
        if file is None:
            return {"reason": "its file is missing"}, None
        try:
            found = await self._hash(file, record, pace)
        except OSError as error:
            if not is_disk_error(error):
                log.warning("content could not be verified", digest=digest, error=str(error))
                return None, None
            return {"reason": f"it cannot be read: {error.strerror}"}, None
        finally:
            file.close()
        if found.holds:
            return None, file.size
        differs = {"size": record.size, "size_found": file.size, "digest_found": found.found}
        return {"reason": "its bytes are not its name"} | differs, file.size

    async def _hash(self, file: BlobFile, record: BlobRecord, pace: "_Pace") -> DigestVerifier:
        """Hash a file; what nobody has used for long is not left in the page cache."""
        proof, offset = DigestVerifier(record.digest), 0
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
        note = problem | {"media_type": media_type, "images": images}
        note["repositories"] = [str(holder) for holder in holders]
        self._lost.add(digest, media_type)
        self._tried.add(digest)
        kept = await self._content.set_aside(digest, note)
        outcome = await self._repair(digest, media_type, holders if repair else None)
        known = {"digest": digest, "reason": problem["reason"], "images": images}
        return {"event": "bad", "quarantined": kept} | known | outcome

    async def _repair(
        self, digest: Digest, media_type: str | None, holders: list[Target] | None
    ) -> Event:
        """Fetch content from one of its repositories, the last first; None: do not try.

        Returns the fields of an event: ``repaired``, None if it was not tried, and the last
        ``failure``, None if there was none.
        """
        if holders is None:
            return {"repaired": None, "failure": None}
        failure = "no repository is known to hold it"
        for target in reversed(holders):
            try:
                if await self._fetch(target, digest, media_type):
                    self._lost.discard(digest)
                    self._repaired += 1
                    self._content.counters.repaired += 1
                    return {"repaired": True, "failure": None}
                failure = "it could not be kept"
            except RegistryError as error:
                failure = error.message
            log.info("not repaired", target=str(target), digest=digest, reason=failure)
        return {"repaired": False, "failure": failure}

    def _check_stop(self) -> None:
        if self._is_stopping:
            raise _StoppedError

    async def _unless_stopped(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return what ``work`` returns; a stop breaks it off, for a download may take long."""
        async with running_beside(work, "verify") as task:
            while not (await asyncio.wait([task], timeout=REPORT_SECONDS))[0]:
                self._check_stop()
            return task.result()

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
        known = noted if isinstance(noted, dict) else {}
        left = {} if restart else known
        self._lost = missing.Lost(known.get("lost"))
        self._counted = {Digest(str(digest)) for digest in as_list(left.get("counted"))}
        self._after, self._reading = str(left.get("after", "")), 0
        self._blobs, self._bytes = int(left.get("blobs", 0)), int(left.get("bytes", 0))
        self._bad, self._repaired = int(left.get("bad", 0)), int(left.get("repaired", 0))

    async def _note(self, *, done: bool) -> None:
        counted: Event = {"blobs": self._blobs, "bytes": self._bytes}
        counted |= {"bad": self._bad, "repaired": self._repaired}
        counted["counted"] = sorted(self._counted)[: missing.MAX_LOST]
        left = {"done_at": self._clock()} if done else {"after": self._after} | counted
        await self._keep(left | {"lost": self._lost.to_json()})

    async def _keep(self, note: Event) -> None:
        try:
            await self._index.set_note(_NOTE, note)
        except StorageError as error:
            log.warning("how far verification has come cannot be noted", error=str(error))


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
