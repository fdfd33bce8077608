"""Counts handled failures, and removes bad content: deletes it, or moves it to quarantine."""

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import structlog

from proxy.content import checks
from proxy.content.checks import Pace, Verdict
from proxy.content.eviction import Evictor
from proxy.content.notices import Corrupt
from proxy.content.reservations import NoSpace
from proxy.core.errors import ContentMismatch, StorageError
from proxy.core.names import Digest, Target
from proxy.core.records import Clock, disk_bytes
from proxy.core.sources import Place, WrongBytes
from proxy.index import Index
from proxy.runtime.executors import Pool, in_thread, run_to_completion
from proxy.runtime.metrics import CacheCounters
from proxy.storage.disk import DiskStore

if TYPE_CHECKING:
    from collections.abc import Callable

_COLD_SECONDS: Final = 86400.0

log = structlog.get_logger(__name__)


class Faults:
    """The faults of single blobs, and of the medium."""

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
        self._evictor = evictor
        self._counters = counters
        self._clock = clock
        self.on_corrupt: Final[list[Callable[[Corrupt], None]]] = []
        """Called with bad content that was found, in the cache or on its way."""

    async def check(self, digest: Digest, pace: Pace) -> Verdict:
        """Hash held content again. Content that was not used for a day leaves the page cache."""
        record = await self._index.blob(digest)
        if record is None:
            return Verdict(None, None)
        after = checks.uncache if await self._is_cold(digest) else checks.keep_cached
        verdict = await checks.check(self._store, record, pace, after)
        if verdict.size is not None:
            self._counters.verified += 1
            self._counters.verified_bytes += verdict.size
        return verdict

    async def _is_cold(self, digest: Digest) -> bool:
        try:
            used_at = (await self._index.last_uses([digest])).get(digest)
        except StorageError:
            return False
        return used_at is not None and self._clock() - used_at > _COLD_SECONDS

    async def drop(self, digest: Digest, *, reason: str) -> None:
        """Delete content whose file is missing or wrong."""
        self._counters.storage_errors += 1
        log.warning("dropped from the cache", digest=digest, reason=reason)
        await run_to_completion(self._drop(digest))

    async def quarantine(self, digest: Digest, note: dict[str, object]) -> str | None:
        """Move bad content to quarantine, with ``note`` beside it if there is space.

        Returns its path there, None if it could only be deleted.
        """
        self._counters.corrupted += 1
        return await run_to_completion(self._quarantine(digest, note))

    async def notes(self) -> list[str]:
        """Return the notes that were written with ``quarantine``."""
        return await in_thread(self._store.quarantine.notes)

    def repaired(self) -> None:
        """Count bad content that was fetched again."""
        self._counters.repaired += 1

    def report_mismatch(
        self, error: ContentMismatch, target: Target | None, digest: Digest, where: str
    ) -> None:
        """Count and log a body that is not its digest; ``where`` is as in ``Corrupt``."""
        self._counters.mismatches += 1
        log.error("content mismatch", error=error.message)
        self._notify(Corrupt(target, digest, error.found, where))

    def mismatch_reporter(self, place: Place) -> WrongBytes:
        """Return the callback for wrong bytes that a source itself has detected."""

        def notify(target: Target, digest: Digest, found: str) -> None:
            self._notify(Corrupt(target, digest, found, place))

        return notify

    def count_error(self, error: StorageError) -> None:
        """Count a handled failure of the disk. A full cache is not a failure."""
        if isinstance(error, NoSpace):
            log.info("not kept", reason=str(error))
            return
        self._counters.storage_errors += 1
        log.warning("storage error, continued without", error=str(error))

    def read_failed(self) -> None:
        """Count content that could not be read while it was sent."""
        self._counters.storage_errors += 1

    async def _report_damage(self, digest: Digest, found: object) -> None:
        """Notify listeners of damaged held content, with one of its repositories."""
        holders = await self._index.holders(digest)
        target = holders[-1] if holders else None
        known = found if isinstance(found, str) else None
        self._notify(Corrupt(target, digest, known, Place.DISK))

    def _notify(self, corrupt: Corrupt) -> None:
        for listener in self.on_corrupt:
            listener(corrupt)

    async def _drop(self, digest: Digest) -> None:
        await self._report_damage(digest, None)
        size = await self._begin_deletion(digest)
        await self._index.drop_blobs([digest])
        await self._delete(digest, size)

    async def _quarantine(self, digest: Digest, note: dict[str, object]) -> str | None:
        text = json.dumps({"digest": digest, "found_at": self._clock(), **note}, indent=2) + "\n"
        path: str | None = None
        await self._report_damage(digest, note.get("digest_found"))
        size = await self._begin_deletion(digest)
        try:
            await self._index.drop_blobs([digest])
            with ExitStack() as resources:
                try:
                    reservation = await self._evictor.reserve(len(text.encode()))
                    resources.callback(reservation.release)
                except NoSpace:
                    text = ""
                path = await in_thread(lambda: self._store.quarantine.add(digest, text), Pool.SYNC)
        except StorageError as error:
            log.warning("not kept in quarantine", digest=digest, reason=str(error))
        finally:
            await self._delete(digest, size)
        log.error(
            "stored content is damaged", digest=digest, kept_as=path, reason=note.get("reason")
        )
        return path

    async def _begin_deletion(self, digest: Digest) -> int:
        """Stop serving content; return its disk bytes, which count until the file is deleted.

        ``_delete`` must follow whatever happens, or the digest could not be stored again.
        """
        record = await self._index.blob(digest)
        size = 0 if record is None else disk_bytes(record.size)
        self._evictor.begin_deletion(size)
        self._store.begin_deletion([digest])
        return size

    async def _delete(self, digest: Digest, size: int) -> None:
        """Delete the file. One that cannot be deleted counts until the next start."""
        if not await self._store.delete([digest]):
            self._evictor.end_deletion(size)
            await self._index.delete_loose_files([digest])
