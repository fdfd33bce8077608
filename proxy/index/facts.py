"""Facts by key: a bounded cache in RAM, with the database behind it.

A write changes RAM at once. There are three cases for a key that is read and not in RAM:

- It is being written: the reader waits for the commit.
- Nothing writes it: it is read in a thread, and put into RAM.
- It is written while it is being read: the result is outdated, and the reader starts again. Other
  facts in the result are put into RAM unless they are written meanwhile, or still have to be.

A write that fails stays in RAM and is tried again by ``write_again``, unless its keys have been
written since. Work that changes rows without knowing their keys writes ``EVERYTHING``: RAM is
cleared, and until the commit nothing is read into it. Such work is not tried again.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final, TypeVar

import structlog

from proxy.core.errors import StorageError
from proxy.index.blob_rows import Connection
from proxy.index.database import Database
from proxy.index.generations import EVERYTHING, Generations
from proxy.index.peek import Peek
from proxy.index.ram_cache import MISSING, RamCache
from proxy.index.threads import Threads, Work, Write

RAM_WEIGHT: Final = 40_000
"""Entries of one generation of the cache: about 20 MB."""

_UNWRITTEN: Final = 10_000
"""Maximum number of keys whose writes are tried again; further writes are dropped."""

Key = Hashable
Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class Facts:
    """``failure`` is the reason why the last write failed; None if it succeeded."""

    def __init__(
        self,
        database: Database,
        *,
        on_error: Callable[[], None],
        renewed: Callable[[], None],
        generations: Generations | None = None,
    ) -> None:
        """``renewed`` is called when a damaged file has been replaced: rows may be lost.

        Processes that read the file learn from ``generations`` what has changed; None: there are
        none.

        ``peek`` returns the value of a key if it is in RAM, else its second argument, ``MISSING``.
        """
        self.threads = Threads(database, self._settle, self._replaced)
        self.file: Final = Peek(database)
        self._renewed = renewed
        self._generations = generations
        self.failure: str | None = None
        self._on_error = on_error
        self._ram = RamCache(RAM_WEIGHT)
        self.peek: Final = self._ram.get
        self._reads: list[set[Key]] = []
        self._writing: dict[Key, Write] = {}
        self._unwritten: dict[Key, Write] = {}

    def look(self, key: Key, read: Callable[..., dict[Key, Any]], *args: Any) -> Any:
        """Return the value of a key without waiting, ``MISSING`` if that is not possible.

        ``read`` returns it in a dictionary with other facts that are asked for next.
        """
        value = self._ram.get(key)
        if value is not MISSING or EVERYTHING in self._writing:
            return value
        for each, fact in self.file.read(lambda db: read(db, *args)).items():
            if each not in self._writing and each not in self._unwritten:
                self._ram.put(each, fact)
        return self._ram.get(key)

    async def get(
        self, key: Key, otherwise: Result, read: Callable[..., Any], *args: Any
    ) -> Result:
        """Return the value of a key; ``otherwise`` if it cannot be read.

        ``read`` returns it, alone or in a dictionary with other facts that are asked for next.
        """
        value: Result = self._ram.get(key)
        if value is not MISSING:
            return value

        def read_facts(db: Connection, _: list[Key]) -> dict[Key, Any]:
            found = read(db, *args)
            return found if isinstance(found, dict) else {key: found}

        value = (await self.get_all([key], read_facts, otherwise))[key]
        return value  # noqa: RET504

    async def get_all(
        self,
        keys: Iterable[Key],
        read: Callable[[Connection, list[Key]], dict[Key, Any]],
        otherwise: Any,
    ) -> dict[Key, Any]:
        """Return the values of keys; ``read`` gets those that are not in RAM."""
        found = {key: self._ram.get(key) for key in keys}
        while missing := [key for key, value in found.items() if value is MISSING]:
            await self.written(missing)
            try:
                found |= await self._read(missing, read)
            except StorageError as error:
                self._handle_error(error)
                found |= dict.fromkeys(missing, otherwise)
        return found

    async def page(self, read: Callable[..., Result], *args: Any) -> Result:
        """Return what ``read`` reads after all writes until now. Raises ``StorageError``."""
        await self.threads.written()
        try:
            return await self.threads.read(lambda db: read(db, *args))
        except StorageError as error:
            self._handle_error(error)
            raise

    async def write(
        self,
        facts: Mapping[Any, Any],
        outdated: Iterable[Key],
        work: Callable[..., Any],
        *args: Any,
        then: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """Return once ``work`` is committed, or has failed.

        RAM has ``facts`` at once, and ``outdated`` no longer. ``then`` is called with what ``work``
        returns, also if the caller is cancelled.
        """
        keys = dict.fromkeys(outdated)
        for key in keys:
            self._ram.pop(key)
        for key, value in facts.items():
            self._ram.put(key, value)
        write = Write(lambda db: work(db, *args), (*keys, *facts), then)
        outcome = await asyncio.shield(self._begin(write))
        if isinstance(outcome, Exception) and not isinstance(outcome, StorageError):
            raise outcome

    async def write_durably(self, work: Callable[..., None], *args: Any) -> None:
        """Return once the work is on the disk. Raises ``StorageError``."""
        write = Write(lambda db: work(db, *args), (), is_durable=True)
        self.threads.submit(write)
        outcome = await asyncio.shield(write.done)
        if isinstance(outcome, Exception):
            raise outcome

    async def write_together(
        self, keys: Iterable[Key], work: Callable[..., None], *args: Any
    ) -> None:
        """Return once the work is on the disk; until then, readers of ``keys`` wait.

        Raises ``StorageError``: then nothing has changed, and the work is not tried again.
        """
        outdated = tuple(dict.fromkeys(keys))
        for key in outdated:
            self._ram.pop(key)
        write = Write(lambda db: work(db, *args), outdated, is_durable=True)
        outcome = await asyncio.shield(self._begin(write))
        if isinstance(outcome, Exception):
            raise outcome

    def begin(self, work: Work[Result], then: Callable[[Result], None]) -> None:
        """Have ``then`` called with what ``work`` returns after all writes until now."""
        self._begin(Write(work, (), then))

    @property
    def are_written(self) -> bool:
        """No write has to be tried again."""
        return not self._unwritten

    async def written(self, keys: Iterable[Key]) -> None:
        """Return once the last writes of keys are committed, or have failed."""
        for key in (*keys, EVERYTHING):
            if (write := self._writing.get(key)) is not None:
                await asyncio.shield(write.done)

    def correct(self, changes: Mapping[Key, Result], change: Callable[[Any, Result], Any]) -> None:
        """Change values that are in RAM and are not being written; reads of them begin anew."""
        self._outdate_reads(changes)
        for key, by in changes.items():
            if key not in self._writing and (value := self._ram.get(key)) is not MISSING:
                self._ram.put(key, change(value, by))

    def outdate(self, keys: Iterable[Key]) -> None:
        """Have keys read anew."""
        self._outdate_reads(keys)
        for key in keys:
            self._ram.pop(key)

    def write_again(self) -> None:
        """Begin to write what has failed and was not replaced since."""
        failed, self._unwritten = self._unwritten, {}
        for write in dict.fromkeys(failed.values()):
            if all(failed.get(key) is write for key in write.keys):
                self._begin(Write(write.work, write.keys, write.then))

    def _begin(self, write: Write) -> asyncio.Future[Any]:
        if EVERYTHING in write.keys:
            self.forget()
        if self._generations is not None:
            self._mark(self._generations, write)
        self._outdate_reads(write.keys)
        for key in write.keys:
            self._unwritten.pop(key, None)
            self._writing[key] = write
        self.threads.submit(write)
        return write.done

    async def _read(
        self, keys: list[Key], read: Callable[[Connection, list[Key]], dict[Key, Any]]
    ) -> dict[Key, Any]:
        """Return what was read and is not outdated. Raises ``StorageError``."""
        outdated: set[Key] = set()
        self._reads.append(outdated)
        try:
            facts = await self.threads.look_up(lambda db: read(db, keys))
        finally:
            self._reads = [one for one in self._reads if one is not outdated]
        valid = facts.keys() - outdated - self._writing.keys()
        if EVERYTHING in outdated or EVERYTHING in self._writing:
            valid = set()
        for key in valid - (self._unwritten.keys() - keys):
            self._ram.put(key, facts[key])
        return {key: facts[key] if key in valid else self._ram.get(key) for key in keys}

    def _outdate_reads(self, keys: Iterable[Key]) -> None:
        """Exclude keys from running reads, which may have read the rows before the change."""
        for outdated in self._reads:
            outdated.update(keys)

    def _settle(self, write: Write, outcome: Any) -> None:
        self._outdate_reads(write.keys)
        settled = [key for key in write.keys if self._writing.get(key) is write]
        for key in settled:
            del self._writing[key]
        if not isinstance(outcome, Exception):
            if write.keys:  # counting alone shows nothing about writes
                self.failure = None
            write.then(outcome)
        if isinstance(outcome, StorageError):
            self._failed(write, outcome)
        if self._generations is not None:
            for key in settled:
                if key not in self._unwritten:
                    self._generations.unmark(key)

    def _failed(self, write: Write, error: StorageError) -> None:
        self.failure = str(error)
        self._handle_error(error)
        if write.is_durable:
            return  # its caller knows, and RAM has nothing of it
        if len(self._unwritten) + len(write.keys) <= _UNWRITTEN:
            for key in write.keys:
                if key not in self._writing and key is not EVERYTHING:
                    self._unwritten[key] = write

    def _mark(self, generations: Generations, write: Write) -> None:
        """Mark the facts of a write that no other write has marked."""
        for key in write.keys:
            if key not in self._writing and key not in self._unwritten:
                generations.mark(key)

    def forget(self) -> None:
        """Clear RAM, except for facts that could not be written.

        Facts that are being written are read again after the commit.
        """
        self._ram.retain(self._unwritten)
        self._outdate_reads([EVERYTHING])

    def _replaced(self) -> None:
        """Drop the facts of a file that has been replaced."""
        self._on_error()
        self.forget()
        if self._generations is not None:
            self._generations.change_file()
        self._renewed()

    def _handle_error(self, error: StorageError) -> None:
        self._on_error()
        log.warning("index error, continued without", error=str(error))
