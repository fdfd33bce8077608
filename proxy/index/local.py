"""The index of one machine: rows in ``tables``, mirrored in RAM where it is hot.

What a hit needs (tags, links, the order of last use) is answered from RAM without waiting; disk
work runs in one worker thread, in order.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import structlog

from proxy.core.errors import StorageError
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import (
    BlobRecord,
    Child,
    ReferrersRecord,
    TagHistoryEntry,
    TagRecord,
    Usage,
    disk_bytes,
)
from proxy.index.forgetting import Forgetting
from proxy.index.ledger import Ledger
from proxy.index.links import Links
from proxy.index.pruning import Known, Pruner
from proxy.index.rows import Held
from proxy.index.tables import opened
from proxy.index.tags import Tags
from proxy.index.uses import Uses, sliced
from proxy.index.worker import Worker
from proxy.runtime.supervisor import Supervisor

FLUSH_SECONDS: Final = 5.0
WAIT_SECONDS: Final = 10.0
"""For so long a request waits until all rows are read; then what is known by then must do."""

log = structlog.get_logger(__name__)


class LocalIndex:
    """An async context manager; loads its mirror and writes last uses in the background."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], float],
        on_trouble: Callable[[], None],
        supervisor: Supervisor | None = None,
        max_bytes: float = float("inf"),
    ) -> None:
        """Let the files grow to ``max_bytes``. ``supervisor`` is closed with the index."""
        self._directory, self._max_bytes = directory, max_bytes
        self._clock = clock
        self._worker = Worker(on_trouble)
        self._supervisor = Supervisor() if supervisor is None else supervisor
        self._disk = self._worker.survive
        self._ledger = Ledger()
        self._uses = Uses(self._ledger, clock)
        self._incomplete: dict[Digest, None] = {}
        self._dropped: set[Digest] = set()
        self._loaded = asyncio.Event()
        self.loaded_bytes = 0
        self.revision = 0
        self.failure: str | None = None

    async def __aenter__(self) -> Self:
        """Open the tables and begin to load them."""
        self._tables, self._instead = await self._worker.run(
            lambda: opened(self._directory, self._worker.on_trouble)
        )
        self._links = Links(self._tables, self._worker, self._ledger)
        self._tags = Tags(self._tables, self._worker, self._revise)
        about = Known(self._ledger, self._links, self._tags)
        self._pruner = Pruner(self._tables, self._worker, about, max_bytes=self._max_bytes)
        await self._pruner.measure()
        self._forgetting = Forgetting(self._tables, self._worker, self._links, self._tags)
        self._supervisor.start_essential("index load", self._load_or_report)
        self._supervisor.start("index flush", self._flush_for_ever)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what is pending and close the tables."""
        await self._supervisor.close()
        await self._flush()
        await self._disk(self._tables.close, None)
        if self._instead is not None:
            shutil.rmtree(self._instead, ignore_errors=True)
        self._worker.close()

    async def ready(self) -> None:
        """Return once everything held is known."""
        await self._loaded.wait()

    @property
    def is_ready(self) -> bool:
        """Everything held is known."""
        return self._loaded.is_set()

    def damaged(self) -> list[str]:
        """Return the tables that were found damaged."""
        return self._tables.damaged()

    @property
    def file_bytes(self) -> int:
        """Bytes of the files, as of a few seconds ago."""
        return self._pruner.file_bytes

    @property
    def dropped_rows(self) -> int:
        """Rows that could not be read and are deleted."""
        return self._tables.dropped

    async def note(self, name: str) -> Any:
        """Return what was noted under a name; None for nothing. Raises ``StorageError``."""
        try:
            return await self._worker.run(lambda: self._tables.note(name))
        except Exception as error:
            self._worker.on_trouble()
            raise StorageError(f"reading {name} from the index: {error}") from error

    async def set_note(self, name: str, value: object) -> None:
        """Note a JSON value for good. Raises ``StorageError``."""
        try:
            await self._worker.run(lambda: self._tables.set_note(name, value))
        except Exception as error:
            self._worker.on_trouble()
            raise StorageError(f"writing {name} to the index: {error}") from error

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return what the tag pointed to when upstream was last asked."""
        return await self._tags.get(target, tag)

    def pointed(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return where a tag points as far as it is known by now."""
        return self._tags.pointed(target, tag)

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord) -> None:
        """Remember the tag, and the sighting in its history."""
        await self._tags.set(target, tag, record)

    async def drop_tag(self, target: Target, tag: Tag) -> None:
        """Forget where it points; its history stays."""
        await self._tags.drop(target, tag)

    async def tags(self, target: Target) -> list[Tag]:
        """Return the known tags of a repository, sorted."""
        await self._wait()
        return self._tags.of(target)

    async def repositories(self) -> list[Target]:
        """Return the repositories with known tags."""
        await self._wait()
        return self._tags.repositories()

    def tagged(self) -> Iterator[tuple[Target, Tag, TagRecord]]:
        """Iterate over all tags that are known by now, sorted; may change meanwhile."""
        return self._tags.all()

    async def referrers(self, target: Target, subject: Digest) -> ReferrersRecord:
        """Return what is known to refer to a manifest; empty when nothing is."""
        nothing = ReferrersRecord((), None)
        return await self._disk(lambda: self._tables.referrers(target, subject), nothing)

    async def set_referrers(self, target: Target, subject: Digest, record: ReferrersRecord) -> None:
        """Remember what upstream said refers to a manifest."""
        await self._disk(lambda: self._tables.set_referrers(target, subject, record), None)

    async def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Remember that a held manifest says that it refers to ``subject``."""
        await self._disk(lambda: self._tables.add_referrer(target, subject, entry), None)

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        """Return the digests the tag has pointed to, latest last; at most 50."""
        return await self._tags.history(target, tag)

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        """Remember that a repository holds these."""
        for digest in await self._links.add(target, digests):
            record = self._ledger.get(digest)
            if record is not None and record.media_type is not None:
                self.revision += 1

    async def linked(self, target: Target, digest: Digest) -> bool:
        """Tell whether a repository is known to hold this."""
        known = self._links.known(digest)
        return target in (await self._links.of(digest) if known is None else known)

    async def holders(self, digest: Digest) -> list[Target]:
        """Return the repositories that are known to hold this."""
        return list(await self._links.of(digest))

    async def blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""
        record = self._ledger.get(digest)
        if record is not None or self._loaded.is_set() or digest in self._dropped:
            return record
        held = await self._disk(lambda: self._tables.blob(digest), None)
        if digest in self._dropped:  # while the row was being read
            return None
        return self._ledger.get(digest) or (None if held is None else held.record)

    async def set_blob(self, record: BlobRecord, children: Iterable[Child] | None = ()) -> None:
        """Remember held content as just used, and what it lists; None when that is not known."""
        known = None if children is None else tuple(children)
        self._ledger.put(record, known or ())
        self._dropped.discard(record.digest)
        self._incomplete.pop(record.digest, None)
        if known is None:
            self._incomplete[record.digest] = None
        if known:
            self.revision += 1
            self._uses.note(record.digest, record.used_at)
        await self._disk(lambda: self._tables.set_blobs([Held(record, known)]), None)

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Forget that content is held here; which repositories hold it upstream stays true."""
        dropped = list(digests)
        for digest in dropped:
            self._ledger.pop(digest)
            self._uses.forget(digest)
            self._incomplete.pop(digest, None)
            if not self._loaded.is_set():
                self._dropped.add(digest)
        self.revision += 1
        await self._disk(lambda: self._tables.drop_blobs(dropped), None)

    def children(self, digest: Digest) -> tuple[Child, ...]:
        """Return what a held manifest lists; empty for everything else."""
        return self._ledger.children(digest)

    def parents(self, digest: Digest) -> list[Digest]:
        """Return the held manifests that list this. Looks at all of them."""
        return self._ledger.parents(digest)

    def held(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content as far as it is known by now."""
        return self._ledger.get(digest)

    def manifests(self) -> Iterator[Digest]:
        """Iterate over the held manifests that list something; may change meanwhile."""
        return self._ledger.manifests()

    def is_listed(self, digest: Digest) -> bool:
        """Tell whether a held manifest lists this."""
        return self._ledger.is_listed(digest)

    def seen(self, digest: Digest) -> bool:
        """Tell whether content is held, and note that its file is there."""
        return self._ledger.seen(digest)

    def unseen(self) -> list[Digest]:
        """Return what is held and has not been ``seen`` since the last time."""
        return self._ledger.unseen()

    def incomplete(self) -> list[Digest]:
        """Return held manifests of which it is not known what they list."""
        return list(self._incomplete)

    def is_incomplete(self, digest: Digest) -> bool:
        """Return whether this is a held manifest of which it is not known what it lists."""
        return digest in self._incomplete

    def touch(self, digest: Digest) -> None:
        """Count a use of content, and with a manifest of what it lists; written in bulk later."""
        if digest in self._ledger or not self._loaded.is_set():
            self._uses.note(digest)

    async def settle(self) -> None:
        """Return once every use until now is in the order of ``coldest``."""
        await self._uses.settle()

    def coldest(self) -> Iterator[BlobRecord]:
        """Iterate over held content, least recently used first, a manifest before its content.

        Must not change meanwhile. Uses count once ``settle`` has returned.
        """
        return self._ledger.coldest()

    def defer(self, digest: Digest) -> None:
        """Move content to the end of ``coldest``; its last use stays what it is."""
        self._ledger.defer(digest)

    def shelf(self, number: int) -> list[Digest]:
        """Return what is held of the digests whose first byte is ``number``, sorted."""
        return self._ledger.shelf(number)

    def usage(self) -> Usage:
        """Return how much is held."""
        return Usage(self._ledger.files, self._ledger.disk_bytes)

    async def prune(self, before: float) -> int:
        """Forget rows about content that is neither held nor listed by what is held.

        Tags and referrers only when they were last confirmed before ``before``, Unix seconds; who
        holds what only when it has not been asked for lately. Returns how many rows went. Raises
        ``StorageError``.
        """
        await self.ready()
        return await self._pruner.prune(before)

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        """Forget where a tag points and has pointed."""
        await self.ready()
        await self._forgetting.tag(target, tag)

    async def linked_to(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        """Return what each repository that is ``wanted`` is known to hold."""
        return await self._forgetting.linked(wanted)

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        """Forget that a repository holds these."""
        await self._forgetting.unlink(target, digests)

    async def forget_referrers(self, wanted: Callable[[Target], bool]) -> None:
        """Forget what refers to the manifests of each repository that is ``wanted``."""
        await self._forgetting.referrers(wanted)

    def _revise(self) -> None:
        self.revision += 1

    async def _wait(self) -> None:
        """Wait until all rows are read, but not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                await self.ready()

    async def _load_or_report(self) -> None:
        """Load; the supervisor tries again after a failure. Until then nothing is evicted."""
        try:
            await self._load()
        except Exception as error:
            if not isinstance(error, StorageError):  # which is counted already
                self._worker.on_trouble()
            self.failure = f"the index cannot be read: {error}"
            raise

    async def _load(self) -> None:
        """Mirror the tables. After a failure it goes on with what is missing."""
        if not self._loaded.is_set():
            await self._load_rows()
        with suppress(StorageError):  # who holds what is read when it is asked for
            await self._links.load()

    async def _load_rows(self) -> None:
        """Mirror tags and blobs; what has been used or learnt meanwhile stays as it is."""
        started = time.perf_counter()
        await self._tags.load()
        async for rows in self._worker.batches(self._tables.all_blobs):
            for held in sliced(rows):
                for row in held:
                    self._mirror(row)
                await asyncio.sleep(0)
        for _ in self._ledger.sort():
            await asyncio.sleep(0)
        self._loaded.set()
        self._dropped.clear()
        self.revision += 1
        self.failure = None
        took = round(time.perf_counter() - started, 3)
        log.debug("index loaded", blobs=self._ledger.files, seconds=took)

    def _mirror(self, held: Held) -> None:
        digest = held.record.digest
        if digest in self._ledger or digest in self._dropped:
            return
        self._ledger.load(held.record, held.children or ())
        self.loaded_bytes += disk_bytes(held.record.size)
        if held.children is None and held.record.media_type is not None:
            self._incomplete[digest] = None

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()
            if self.is_ready:  # else it is not known what is held
                await self._pruner.keep_small(self._clock())

    async def _flush(self) -> None:
        """Write the last uses since the last time, in a few transactions."""
        await self.settle()
        for digests in sliced(self._uses.unwritten()):
            rows = [row for digest in digests if (row := self._row(digest)) is not None]
            await self._disk(lambda rows=rows: self._tables.set_blobs(rows), None)  # type: ignore[misc]

    def _row(self, digest: Digest) -> Held | None:
        record = self._ledger.get(digest)
        if record is None:
            return None
        is_known = digest not in self._incomplete
        return Held(record, self._ledger.children(digest) if is_known else None)
