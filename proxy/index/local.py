"""The index of one machine: rows in ``tables``, mirrored in RAM where it is hot.

What a hit needs (tags, links, the order of last use) is answered from RAM without waiting; disk
work runs in one worker thread, in order.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import structlog
from cachetools import LRUCache

from proxy.index.tables import Tables
from proxy.names import Digest, Tag, Target
from proxy.records import (
    BlobRecord,
    ReferrersRecord,
    Sighting,
    TagRecord,
    Usage,
    disk_bytes,
)

FLUSH_SECONDS: Final = 5.0
_LINKS_IN_RAM: Final = 100_000
_LOAD_BATCH: Final = 2000

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class LocalIndex:
    """An async context manager; loads its mirror and writes last uses in the background."""

    def __init__(
        self, directory: Path, *, clock: Callable[[], float], on_trouble: Callable[[], None]
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._on_trouble = on_trouble
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._tags: dict[Target, dict[Tag, TagRecord]] = {}
        self._links: LRUCache[Digest, dict[Target, None]] = LRUCache(_LINKS_IN_RAM)
        self._held: OrderedDict[Digest, BlobRecord] = OrderedDict()
        self._held_bytes = 0
        self._touched: dict[Digest, float] = {}
        self._loaded = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Open the tables and begin to load them."""
        loop = asyncio.get_running_loop()
        self._tables = await loop.run_in_executor(self._worker, Tables, self._directory)
        self._background = [
            asyncio.create_task(self._load(), name="index load"),
            asyncio.create_task(self._flush_for_ever(), name="index flush"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is pending and close the tables."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._flush()
        await self._disk(self._tables.close, None)
        self._worker.shutdown()

    async def ready(self) -> None:
        """Return once everything held is known."""
        await self._loaded.wait()

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return what the tag pointed to when upstream was last asked."""
        record = self._tags.get(target, {}).get(tag)
        if record is None and not self._loaded.is_set():
            record = await self._disk(lambda: self._tables.tag(target, tag), None)
        return record

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord) -> None:
        """Remember the tag, and the sighting in its history."""
        self._tags.setdefault(target, {})[tag] = record
        await self._disk(lambda: self._tables.set_tag(target, tag, record), None)

    async def drop_tag(self, target: Target, tag: Tag) -> None:
        """Forget where the tag points; its history stays."""
        await self.ready()
        known = self._tags.get(target, {})
        if known.pop(tag, None) is not None:
            await self._disk(lambda: self._tables.drop_tag(target, tag), None)
        if not known:
            self._tags.pop(target, None)

    async def tags(self, target: Target) -> list[Tag]:
        """Return the known tags of a repository, sorted."""
        await self.ready()
        return sorted(self._tags.get(target, {}))

    async def repositories(self) -> list[Target]:
        """Return the repositories with known tags."""
        await self.ready()
        return list(self._tags)

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

    async def history(self, target: Target, tag: Tag) -> tuple[Sighting, ...]:
        """Return the digests the tag has pointed to, latest last; at most 50."""
        empty: tuple[Sighting, ...] = ()
        return await self._disk(lambda: self._tables.history(target, tag), empty)

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        """Remember that a repository holds these."""
        holders = await self._holders(digests)
        new = {digest: known for digest, known in holders.items() if target not in known}
        for known in new.values():
            known[target] = None
        if new:
            rows = {digest: list(known) for digest, known in new.items()}
            await self._disk(lambda: self._tables.set_holders(rows), None)

    async def linked(self, target: Target, digest: Digest) -> bool:
        """Tell whether a repository is known to hold this."""
        known = self._links.get(digest)
        if known is None:
            known = (await self._holders([digest]))[digest]
        return target in known

    async def blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""
        record = self._held.get(digest)
        if record is None and not self._loaded.is_set():
            record = await self._disk(lambda: self._tables.blob(digest), None)
        return record

    async def set_blob(self, record: BlobRecord) -> None:
        """Remember held content as just used."""
        self._forget(record.digest)
        self._held[record.digest] = record
        self._held_bytes += disk_bytes(record.size)
        await self._disk(lambda: self._tables.set_blobs([record]), None)

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Forget that content is held here; which repositories hold it upstream stays true."""
        dropped = list(digests)
        for digest in dropped:
            self._forget(digest)
        await self._disk(lambda: self._tables.drop_blobs(dropped), None)

    def touch(self, digest: Digest) -> None:
        """Count a use; written in bulk, some seconds later."""
        if digest in self._held:
            self._held.move_to_end(digest)
            self._touched[digest] = self._clock()

    def coldest(self) -> Iterator[BlobRecord]:
        """Iterate over held content, least recently used first."""
        return iter(self._held.values())

    def usage(self) -> Usage:
        """Return how much is held."""
        return Usage(len(self._held), self._held_bytes)

    def _forget(self, digest: Digest) -> None:
        record = self._held.pop(digest, None)
        self._touched.pop(digest, None)
        if record is not None:
            self._held_bytes -= disk_bytes(record.size)

    async def _holders(self, digests: Iterable[Digest]) -> dict[Digest, dict[Target, None]]:
        """Return the holders of each digest as the very sets that RAM keeps."""
        found = {digest: self._links.get(digest) for digest in digests}
        missing = [digest for digest, known in found.items() if known is None]
        if missing:
            nothing: dict[Digest, list[Target]] = {}
            rows = await self._disk(lambda: self._tables.holders(missing), nothing)
            for digest in missing:
                loaded = dict.fromkeys(rows.get(digest, ()))
                found[digest] = self._links.setdefault(digest, loaded)
        return {digest: known for digest, known in found.items() if known is not None}

    async def _load(self) -> None:
        """Mirror the tables; what has been used or learnt meanwhile stays as it is."""
        started = time.perf_counter()
        records: list[BlobRecord] = []
        records = await self._disk(lambda: list(self._tables.all_blobs()), records)
        records.sort(key=lambda record: record.used_at, reverse=True)
        for batch in _batched(records):
            for record in batch:
                if record.digest not in self._held:
                    self._held[record.digest] = record
                    self._held.move_to_end(record.digest, last=False)
                    self._held_bytes += disk_bytes(record.size)
            await asyncio.sleep(0)
        tags: list[tuple[Target, Tag, TagRecord]] = []
        tags = await self._disk(lambda: list(self._tables.all_tags()), tags)
        for target, tag, tag_record in tags:
            self._tags.setdefault(target, {}).setdefault(tag, tag_record)
        self._loaded.set()
        took = round(time.perf_counter() - started, 3)
        log.debug("index loaded", blobs=len(records), tags=len(tags), seconds=took)

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        """Write the last uses since the last time, in one transaction."""
        touched, self._touched = self._touched, {}
        records = []
        for digest, used_at in touched.items():
            self._held[digest] = replace(self._held[digest], used_at=used_at)
            records.append(self._held[digest])
        if records:
            await self._disk(lambda: self._tables.set_blobs(records), None)

    async def _disk(self, work: Callable[[], Result], otherwise: Result) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._worker, work)
        except Exception as error:
            self._on_trouble()
            log.warning("index trouble, carried on without", error=repr(error))
            return otherwise


def _batched(records: list[BlobRecord]) -> Iterator[list[BlobRecord]]:
    remaining = iter(records)
    while batch := list(islice(remaining, _LOAD_BATCH)):
        yield batch
