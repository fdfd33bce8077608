"""The index of one machine: one SQLite file, with a bounded cache in RAM in front.

Facts that a hit needs come from RAM or the page cache, without suspending. Keys in RAM: ``blob``,
``children`` and ``holders`` of a digest; ``tag`` and ``history`` of a tag; ``tags`` of a
repository; ``link`` of a digest to a repository. Last uses are buffered, and written in one
transaction every few seconds.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Self, TypeVar

import structlog

from proxy.core.errors import StorageError
from proxy.core.manifests import walk
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import (
    BlobRecord,
    Child,
    Clock,
    ImageSet,
    TagHistoryEntry,
    TagRecord,
    Usage,
    counted,
    disk_bytes,
)
from proxy.index import Position, Tree, blob_rows, name_rows, tree_rows, use_rows, values
from proxy.index.blob_rows import Connection
from proxy.index.database import Database
from proxy.index.facts import Facts, Key
from proxy.index.ram_cache import MISSING
from proxy.index.retention import Pruner
from proxy.index.uses import Uses
from proxy.runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from proxy.index.generations import Generations

FLUSH_SECONDS: Final = 5.0

_SLICE: Final = 250
"""Digests of one write: others wait while it runs."""

P = ParamSpec("P")
Result = TypeVar("Result")
log = structlog.get_logger(__name__)


def _page(
    read: Callable[Concatenate[Connection, P], Result],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, Result]]:
    """Return the verb that reads from the file, after all writes until now."""

    async def verb(self: "SqliteIndex", /, *args: P.args, **named: P.kwargs) -> Result:
        return await self._facts.page(partial(read, **named), *args)

    return verb


class SqliteIndex:
    """An async context manager; writes last uses and prunes in the background."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        on_error: Callable[[], None],
        supervisor: Supervisor | None = None,
        max_bytes: float = float("inf"),
    ) -> None:
        """Let the file grow to ``max_bytes``. ``supervisor`` is closed with the index."""
        self._database = Database(directory)
        self._clock = clock
        self._on_error = on_error
        self._supervisor = Supervisor() if supervisor is None else supervisor
        self._max_bytes = max_bytes
        self.generations: Generations | None = None
        """Reports changes to the processes that read the file. Set before the file is opened."""
        self._usage = Usage(0, 0)
        self._counting: Usage | None = None
        self.revision = 0

    async def __aenter__(self) -> Self:
        """Open the file. Raises ``ConfigError``, ``StorageError``."""
        started = time.perf_counter()
        self._facts = Facts(
            self._database,
            on_error=self._handle_error,
            renewed=self._recount,
            generations=self.generations,
        )
        self.uses = Uses(self._facts, self._clock)
        self._pruner = Pruner(self._facts, self._database, max_bytes=self._max_bytes)
        threads = self._facts.threads
        try:
            await threads.run(self._database.open)
            self._usage = self._database.usage
            await self._pruner.measure()
        except BaseException:
            await threads.close()
            raise
        if self._database.is_temporary:
            self._on_error()
        took = round(time.perf_counter() - started, 3)
        log.debug("index open", blobs=self._usage.files, seconds=took)
        self._supervisor.start("index flush", self._flush_forever)
        self._supervisor.start("index page cache", self._facts.file.watch)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what is pending and close the file."""
        await self._supervisor.close()
        self._facts.write_again()
        await self.uses.flush()
        self._facts.file.close()
        await self._facts.threads.close()

    weights = _page(tree_rows.weights)
    listings = _page(tree_rows.listings)
    listed_by_others = _page(tree_rows.listed_by_others)
    blobs = _page(blob_rows.blobs)
    loose_files = _page(blob_rows.loose_files)
    incomplete = _page(blob_rows.incomplete)
    untagged = _page(name_rows.untagged)
    linked_to = _page(name_rows.linked_to)
    repositories = _page(name_rows.repositories)
    search = _page(name_rows.search)
    note = _page(name_rows.note)

    @property
    def failure(self) -> str | None:
        if self._database.is_temporary:
            return "the index cannot be opened; it is in a temporary directory"
        return self._facts.failure

    @property
    def file(self) -> Path:
        """The file that other processes may read."""
        return self._database.file

    @property
    def damaged(self) -> str | None:
        return self._database.damaged

    @property
    def file_bytes(self) -> int:
        return self._pruner.file_bytes

    @property
    def dropped_rows(self) -> int:
        return self._database.dropped

    def usage(self) -> Usage:
        return self._usage

    def touch(self, digest: Digest) -> None:
        self.uses.touch(digest)

    def peek_blob(self, digest: Digest) -> BlobRecord | None:
        record: BlobRecord | None = self._facts.peek(("blob", digest), None)
        return record

    def peek_tag(self, target: Target, tag: Tag) -> TagRecord | None:
        record = self._facts.look(("tag", target, tag), name_rows.tag, target, tag)
        return None if record is MISSING else record

    def peek_linked(self, target: Target, digest: Digest) -> bool:
        key = ("link", target, digest)
        return self._facts.look(key, name_rows.linked, target, digest) is True

    async def blob(self, digest: Digest) -> BlobRecord | None:
        known = self._facts.peek(("blob", digest))
        return (await self.records([digest])).get(digest) if known is MISSING else known

    async def records(self, digests: Iterable[Digest]) -> dict[Digest, BlobRecord]:
        def read(db: Connection, keys: list[Any]) -> dict[Key, Any]:
            held = blob_rows.records(db, (digest for _, digest in keys))
            return {key: held.get(key[1]) for key in keys}

        found = await self._facts.get_all((("blob", one) for one in digests), read, None)
        return {record.digest: record for record in found.values() if record is not None}

    async def children(self, digest: Digest) -> tuple[Child, ...] | None:
        return await self._facts.get(("children", digest), None, blob_rows.children, digest)

    async def parents(self, digest: Digest) -> list[Digest]:
        with suppress(StorageError):
            return await self._facts.page(tree_rows.parents, digest)
        return []

    async def trees(self, digests: Iterable[Digest]) -> dict[Digest, Tree]:
        roots = list(digests)
        with suppress(StorageError):
            if self._facts.are_written:  # else RAM knows more than the file
                return await self._facts.page(tree_rows.trees, roots)
        return {root: await self._tree(root) for root in roots}

    async def _tree(self, root: Digest) -> Tree:
        async def listed(digest: Digest) -> list[Digest]:
            return [child.digest for child in await self.children(digest) or ()]

        tree = [node.digest async for node in walk([root], listed)]
        held = await self.records(tree)
        return {one: disk_bytes(held[one].size) if one in held else 0 for one in tree}

    async def set_blob(self, record: BlobRecord, children: Iterable[Child] | None = ()) -> None:
        digest, listed = record.digest, values.children(children, record)
        known = await self.blob(digest)  # which is in RAM if it was looked up before
        former = self._facts.peek(("blob", digest), known)
        self._usage = counted(self._usage, former, record)
        self.uses.stored(record)
        self.revision += bool(listed)
        facts = {("blob", digest): record, ("children", digest): listed}
        await self._facts.write(facts, (), blob_rows.put, record, listed, then=self._correct)

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        wanted = list(dict.fromkeys(digests))
        self.revision += 1
        for start in range(0, len(wanted), _SLICE):
            await self._drop_blobs(wanted[start : start + _SLICE])

    async def _drop_blobs(self, digests: list[Digest]) -> None:
        held = await self.records(digests)
        facts: dict[Key, Any] = {}
        for digest in digests:
            former = self._facts.peek(("blob", digest), held.get(digest))
            self._usage = counted(self._usage, former, None)
            facts |= {("blob", digest): None, ("children", digest): ()}
        await self._facts.write(facts, (), blob_rows.drop, digests, then=self.uses.written)

    async def add_loose_files(self, digests: Iterable[Digest]) -> None:
        with suppress(StorageError):
            await self._facts.write_durably(blob_rows.add_loose_files, list(digests))

    async def delete_loose_files(self, digests: Iterable[Digest]) -> None:
        await self._facts.write({}, (), blob_rows.delete_loose_files, list(digests))

    async def coldest(
        self, after: Position | None, limit: int
    ) -> list[tuple[Position, BlobRecord]]:
        return await self.uses.coldest(after, limit)

    async def last_uses(self, digests: Iterable[Digest]) -> dict[Digest, float]:
        return await self._facts.page(use_rows.last_uses, list(digests))

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        wanted = list(digests)
        new = [one for one in wanted if self._facts.peek(("link", target, one)) is not True]
        if not new:
            await self._facts.written(("link", target, digest) for digest in wanted)
            return
        held = [self._facts.peek(("blob", digest)) for digest in new]
        if any(one is MISSING or (one is not None and one.media_type is not None) for one in held):
            self.revision += 1
        facts = {("link", target, digest): True for digest in new}
        outdated = [("holders", digest) for digest in new]
        await self._facts.write(facts, outdated, name_rows.link, target, new, self._clock())

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        gone = list(digests)
        self.revision += 1
        for start in range(0, len(gone), _SLICE):
            some = gone[start : start + _SLICE]
            facts = {("link", target, digest): False for digest in some}
            outdated = [("holders", digest) for digest in some]
            await self._facts.write(facts, outdated, name_rows.unlink, target, some)

    async def linked(self, target: Target, digest: Digest) -> bool:
        key = ("link", target, digest)
        return await self._facts.get(key, False, name_rows.linked, target, digest)

    async def holders(self, digest: Digest) -> list[Target]:
        return list(await self._facts.get(("holders", digest), (), name_rows.holders, digest))

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        return await self._facts.get(("tag", target, tag), None, name_rows.tag, target, tag)

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord | None) -> None:
        await self.tag(target, tag)
        before = self._facts.peek(("tag", target, tag))  # still missing if the disk has failed
        if before is MISSING or values.descriptor(before) != values.descriptor(record):
            self.revision += 1
        facts: dict[Key, Any] = {("tag", target, tag): record}
        outdated: list[Key] = [("history", target, tag)]
        if before in (MISSING, None) or record is None:
            outdated.append(("tags", target))
        await self._facts.write(facts, outdated, name_rows.set_tag, target, tag, record)

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        self.revision += 1
        facts, outdated = {("tag", target, tag): None}, [("tags", target), ("history", target, tag)]
        await self._facts.write(facts, outdated, name_rows.forget_tag, target, tag)

    async def tags(self, target: Target) -> list[Tag]:
        return list(await self._facts.get(("tags", target), (), name_rows.tags, target))

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        return await self._facts.get(("history", target, tag), (), name_rows.history, target, tag)

    async def add_history(
        self, target: Target, tag: Tag, entries: Iterable[TagHistoryEntry]
    ) -> None:
        outdated: list[Key] = [("history", target, tag)]
        await self._facts.write({}, outdated, name_rows.add_history, target, tag, tuple(entries))

    async def add_images(self, images: ImageSet) -> None:
        self.revision += 1
        keys: list[Key] = [(kind, *image) for image in images.tags for kind in ("tag", "history")]
        keys += (("tags", target) for target, _ in images.tags)
        keys += (("history", *image) for image in images.history)
        keys += (("referrers", *place[:2]) for place in images.referrers)
        for target, digests in images.links.items():
            keys += (key for one in digests for key in (("link", target, one), ("holders", one)))
        await self._facts.write_together(keys, name_rows.add_images, images, self._clock())

    async def referrers(self, target: Target, subject: Digest) -> tuple[dict[str, object], ...]:
        with suppress(StorageError):
            return await self._facts.page(name_rows.referrers, target, subject)
        return ()

    async def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        keys = [("referrers", target, subject)]
        await self._facts.write({}, keys, name_rows.add_referrer, target, subject, entry)

    async def set_note(self, name: str, value: object) -> None:
        await self._facts.write_durably(name_rows.set_note, name, value)

    async def prune(self, before: float) -> int:
        self.revision += 1
        return await self._pruner.prune(before)

    def _handle_error(self) -> None:
        """Recount held content: a row that could not be read may have been counted twice."""
        self._counting = replace(self._usage)
        self._on_error()

    def _recount(self) -> None:
        """Count what is held anew, with what is counted until that is done.

        While there are writes to be tried again, rows are missing, and the former count stays.
        """
        self.revision += 1
        before = self._counting = replace(self._usage)

        def then(found: Usage) -> None:
            if self._counting is before and self._facts.are_written:
                self._counting = None
                files = found.files + self._usage.files - before.files
                size = found.disk_bytes + self._usage.disk_bytes - before.disk_bytes
                self._usage = Usage(files, size)

        self._facts.begin(blob_rows.usage, then)

    def _correct(self, stored: blob_rows.Stored) -> None:
        """Bring RAM into agreement with what storing a blob has changed."""
        self.uses.written(stored.uses)
        self._facts.outdate([("children", manifest) for manifest in stored.resized])

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self._facts.write_again()
            if self._counting is not None:
                self._recount()
            await self.uses.flush()
            await self.uses.settle()
            self.revision += await self._pruner.keep_small(self._clock())
