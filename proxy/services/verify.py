"""Verifies held content: hashes every file, quarantines bad content, and fetches it again.

Processes the digests in order and stores its position, so that it can be interrupted.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import structlog

from proxy.content.checks import Verdict
from proxy.content.content import Content
from proxy.core.errors import Conflict, RegistryError, StorageError
from proxy.core.names import Digest, Target
from proxy.core.records import disk_bytes
from proxy.core.tolerant_json import as_list
from proxy.runtime.executors import run_to_completion
from proxy.runtime.supervisor import running_beside
from proxy.services import missing
from proxy.services.inventory import broken_by

REPORT_SECONDS: Final = 0.5
NOTE_SECONDS: Final = 5.0
_NOTE: Final = "verify"

Fetch = Callable[[Target, Digest, str | None], Awaitable[bool]]
"""Fetches content of a media type (None: a blob) from a repository; returns if it is held now."""

Roots = Callable[[], Awaitable[Iterable[Digest]]]

Event = dict[str, Any]
Result = TypeVar("Result")
log = structlog.get_logger(__name__)


async def _none() -> Iterable[Digest]:
    return ()


@dataclass(slots=True)
class _Counted:
    """The counts of one round, as in its note and its last event."""

    blobs: int = 0
    bytes: int = 0
    bad: int = 0
    repaired: int = 0


class _StoppedError(Exception):
    """The verification is to end."""


class Verifier:
    """One verification at a time."""

    def __init__(
        self,
        content: Content,
        fetch: Fetch,
        clock: Callable[[], float],
        pinned: Roots = _none,
    ) -> None:
        """``pinned`` returns the manifests of pinned images, held or not."""
        self._content = content
        self._pinned = pinned
        self._lost = missing.LostContent(None)
        self._tried: set[Digest] = set()
        self._counted: set[Digest] = set()
        self._fetch = fetch
        self._clock = clock
        self._is_running = self._is_stopping = False
        self._after = ""
        self._count = _Counted()
        self._reading = 0

    def stop(self) -> None:
        """End the verification soon: its events end without ``done``."""
        self._is_stopping = True

    async def run(self, *, repair: bool, rate: int, restart: bool) -> AsyncGenerator[Event]:
        """Verify all content, at ``rate`` bytes a second (0: no limit).

        Yields events: start, progress, bad, done. Continues where the last run was interrupted,
        unless ``restart``. Without ``done`` at its end it was stopped. Raises ``Conflict`` if
        another one is running.
        """
        if self._is_running:
            raise Conflict("a verification is running; wait for its end, or interrupt it")
        self._is_running = True
        try:
            self._tried.clear()
            await self._load(restart=restart)
            async with aclosing(self._round(_Pace(rate), repair=repair)) as events:
                async for event in events:
                    yield event
        except _StoppedError:
            log.info("verification stopped; the next one continues there")
        finally:
            self._is_running = False

    async def scrub(self, every: float, rate: int) -> None:
        """Verify and repair until ``stop``, one round every ``every`` seconds."""
        while not self._is_stopping:
            noted = await self._noted()
            done_at = noted.get("done_at") if isinstance(noted, dict) else None
            if done_at is None and noted is None:
                done_at = self._clock()  # a new cache needs no verification yet
                await self._save({"done_at": done_at})
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
        """Verify the rest of a round, and note the position in any case."""
        usage, is_done = self._content.usage(), False
        sizes = {"blobs": usage.files, "bytes": usage.held_bytes}
        try:
            yield {"event": "start", **sizes, "resumed": bool(self._after)}
            async for event in self._walk(pace, repair=repair):
                yield event
            async for event in self._complete(repair=repair):
                yield event
            is_done = True
        finally:
            await run_to_completion(self._note(done=is_done))
        yield {"event": "done", **asdict(self._count)}

    async def _walk(self, pace: "_Pace", *, repair: bool) -> AsyncGenerator[Event]:
        reported = noted = time.monotonic()
        async for batch in self._content.digests(self._after):
            for digest in batch:
                self._check_stop()
                async with running_beside(self._check(digest, pace), "verify") as hashing:
                    while not (await asyncio.wait([hashing], timeout=REPORT_SECONDS))[0]:
                        self._check_stop()
                        yield {"event": "progress", **self._so_far()}
                verdict = hashing.result()
                self._after, self._reading = digest, 0
                if verdict.size is not None:  # None: it could not be read
                    self._count.blobs += 1
                    self._count.bytes += disk_bytes(verdict.size)  # as the sum at the start counts
                if verdict.problem is not None:
                    self._count_bad(digest)
                    handling = self._handle_bad(digest, verdict.problem, repair=repair)
                    yield await self._unless_stopped(handling)
                if (now := time.monotonic()) - reported >= REPORT_SECONDS:
                    reported = now
                    yield {"event": "progress", **self._so_far()}
                if now - noted >= NOTE_SECONDS:
                    noted = now
                    await self._note(done=False)
            await asyncio.sleep(0)

    def _count_bad(self, digest: Digest) -> None:
        """Count a piece once a round, even if the round is interrupted."""
        if digest not in self._counted:
            self._count.bad += 1
            self._counted.add(digest)

    async def _complete(self, *, repair: bool) -> AsyncGenerator[Event]:
        """Report missing pieces, and fetch them if ``repair``; a fetched manifest may list more."""
        while True:
            found = await missing.find(self._content, self._lost, await self._pinned())
            pieces = [piece for piece in found if piece.digest not in self._tried]
            if not pieces:
                return
            for piece in pieces:
                self._tried.add(piece.digest)
                self._count_bad(piece.digest)
                holders = await missing.holders(self._content, piece.digest) if repair else None
                repairing = self._repair(piece.digest, piece.media_type, holders)
                outcome = await self._unless_stopped(repairing)
                known = {"digest": piece.digest, "reason": piece.reason, "images": piece.images}
                yield {"event": "bad", "quarantined": None} | known | outcome

    async def _check(self, digest: Digest, pace: "_Pace") -> Verdict:
        async def progress(size: int) -> None:
            self._reading += size
            await pace.wait(size)

        return await self._content.faults.check(digest, progress)

    async def _handle_bad(self, digest: Digest, problem: Event, *, repair: bool) -> Event:
        images = await broken_by(self._content, digest)
        record = await self._content.record(digest)
        media_type = None if record is None else record.media_type
        holders = await self._content.links.holders(digest)
        note = problem | {"media_type": media_type, "images": images}
        note["repositories"] = [str(holder) for holder in holders]
        self._lost.add(digest, media_type)
        self._tried.add(digest)
        quarantined = await self._content.faults.quarantine(digest, note)
        outcome = await self._repair(digest, media_type, holders if repair else None)
        known = {"digest": digest, "reason": problem["reason"], "images": images}
        return {"event": "bad", "quarantined": quarantined} | known | outcome

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
                    self._count.repaired += 1
                    self._content.faults.repaired()
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
        """Return what ``work`` returns; ``stop`` cancels it, because a download may take long."""
        async with running_beside(work, "verify") as task:
            while not (await asyncio.wait([task], timeout=REPORT_SECONDS))[0]:
                self._check_stop()
            return task.result()

    def _so_far(self) -> dict[str, int]:
        return {"blobs": self._count.blobs, "bytes": self._count.bytes + self._reading}

    async def _noted(self) -> Any:
        """Return the note of earlier runs; empty if it cannot be read."""
        try:
            return await self._content.note(_NOTE)
        except StorageError:
            return {}

    async def _load(self, *, restart: bool) -> None:
        noted = await self._noted()
        known = noted if isinstance(noted, dict) else {}
        left = {} if restart else known
        self._lost = missing.LostContent(known.get("lost"))
        self._counted = {Digest(str(digest)) for digest in as_list(left.get("counted"))}
        self._after, self._reading = str(left.get("after", "")), 0
        names = _Counted.__dataclass_fields__
        self._count = _Counted(**{name: int(left.get(name, 0)) for name in names})

    async def _note(self, *, done: bool) -> None:
        left: Event = {"done_at": self._clock()}
        if not done:
            counted = sorted(self._counted)[: missing.MAX_LOST]
            left = {"after": self._after, **asdict(self._count), "counted": counted}
        await self._save(left | {"lost": self._lost.to_json()})

    async def _save(self, note: Event) -> None:
        try:
            await self._content.set_note(_NOTE, note)
        except StorageError as error:
            log.warning("the position of verification cannot be stored", error=str(error))


class _Pace:
    """Keeps reading below a rate in bytes a second; 0 is no limit."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._ahead_of = time.monotonic()

    async def wait(self, size: int) -> None:
        """Wait until ``size`` more bytes may be read."""
        if self._rate <= 0:
            await asyncio.sleep(0)
            return
        now = time.monotonic()
        self._ahead_of = max(self._ahead_of, now - 1) + size / self._rate
        await asyncio.sleep(max(0.0, self._ahead_of - now))
