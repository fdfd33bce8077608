"""Reads the index that another process writes, for hits.

Returns only certain facts: that a repository may serve held content, and where a tag points.
Everything else is None; only the process that writes the index knows more. Facts are cached in RAM
while they are valid by ``generations``.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, TagRecord
from proxy.index import name_rows
from proxy.index.database import reader
from proxy.index.generations import Generations, Stamp, place
from proxy.index.ram_cache import RamCache
from proxy.index.values import Unreadable

_Query = Callable[[sqlite3.Connection], dict[Any, Any]]

RAM_WEIGHT: Final = 40_000
"""Facts of one generation of the cache in RAM."""

log = structlog.get_logger(__name__)


class _Known:
    """A fact, valid while its slot has this stamp; ``changes`` is from the last check of it."""

    __slots__ = ("changes", "place", "stamp", "value")

    def __init__(self, place: int, stamp: Stamp, value: Any) -> None:
        self.place = place
        self.stamp = stamp
        self.value = value
        self.changes = -1


class IndexReader:
    """The facts in a file. Close it when done."""

    def __init__(self, file: Path, generations: Generations) -> None:
        self._file = file
        self._generations = generations
        self._ram = RamCache(RAM_WEIGHT)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index-read")
        self._connection: sqlite3.Connection | None = None
        self._opened_as = 0

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()

    def peek_tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return the record of a tag, if it is in RAM."""
        record: TagRecord | None = self._peek(("tag", target, tag))
        return record

    def peek_held(self, target: Target, digest: Digest) -> BlobRecord | None:
        """Return the record of held content that a repository may serve, if it is in RAM."""
        if not self._peek(("link", target, digest)):
            return None
        record: BlobRecord | None = self._peek(("blob", digest))
        return record

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return the record of a tag, as of the last answer of upstream."""
        return self.peek_tag(target, tag) or await self._read(
            ("tag", target, tag), lambda db: name_rows.tag(db, target, tag)
        )

    async def held(self, target: Target, digest: Digest) -> BlobRecord | None:
        """Return the record of held content that a repository may serve."""
        if (record := self.peek_held(target, digest)) is not None:
            return record
        await self._read(("link", target, digest), lambda db: name_rows.linked(db, target, digest))
        return self.peek_held(target, digest)

    def _peek(self, key: Hashable) -> Any:
        known: _Known | None = self._ram.get(key, None)
        if known is None:
            return None
        changes = self._generations.changes  # nearly always those of the last look
        if known.changes != changes:
            if self._generations.stamp(known.place) != known.stamp:
                return None
            known.changes = changes
        return known.value

    async def _read(self, key: Hashable, read: _Query) -> Any:
        """Keep the facts that ``read`` returns, and return that of ``key`` if it is certain."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self._facts, read)
        except (sqlite3.Error, OSError, Unreadable) as error:
            log.debug("index not read", error=str(error))
            return None
        for each, known in found.items():
            self._ram.put(each, known)
        return self._peek(key)

    def _facts(self, read: _Query) -> dict[Hashable, _Known]:
        """Return the facts in the file, with stamps from before they were read.

        The first read finds the keys of the facts, the second one their values.
        """
        db = self._connected()
        stamps = {key: self._stamped(key) for key in read(db)}
        facts = read(db)
        return {
            key: _Known(place, stamp, facts[key])
            for key, (place, stamp) in stamps.items()
            if stamp is not None and key in facts
        }

    def _stamped(self, key: Hashable) -> tuple[int, Stamp | None]:
        number = place(key)
        return number, self._generations.stamp(number)

    def _connected(self) -> sqlite3.Connection:
        """Return a connection to the current file."""
        if self._connection is None or self._opened_as != self._generations.file:
            self._disconnect()
            self._opened_as = self._generations.file
            self._connection = reader(self._file)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
