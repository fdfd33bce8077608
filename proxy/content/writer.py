"""Writes one arriving blob: reserves space first, and hashes bytes on the way to the disk.

A thread takes the collected bytes, hashes those in order from memory, and writes them; the next
bytes are collected meanwhile, and the thread ends when there are none. So a fast body keeps one
thread busy, and a slow one is readable as soon as it arrives. Bytes ahead of a gap
(parallel ranges) are written at once and hashed from the page cache when the gap has closed.
"""

import asyncio
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from proxy.content.checks import hash_stored
from proxy.content.intervals import Intervals
from proxy.content.reservations import BodyReservation
from proxy.core.errors import UpstreamUnavailable
from proxy.core.names import Digest, DigestVerifier, Target
from proxy.core.records import BLOCK, Descriptor
from proxy.core.sources import Piece
from proxy.runtime.executors import Pool, in_thread, run_to_completion, start_in_thread
from proxy.runtime.pulse import Pulse
from proxy.storage.disk import DiskSpool

if TYPE_CHECKING:
    from proxy.content.content import Content

STEP: Final = 1024 * 1024
"""Bytes that the thread writes before readers get them."""

MAX_WAITING: Final = 2 * STEP
"""Maximum number of bytes that wait to be written; then the source has to wait too."""

_INLINE: Final = 32 * 1024
"""Bytes up to which hashing and writing on the loop is cheaper than a thread."""

_CATCH_UP: Final = 4 * STEP
"""Bytes that are read back at a time, so that arriving bytes are not delayed for long."""


class Writer:
    """One blob on its way to the store. Leaving its context removes what was not committed.

    ``size`` is None until it is known. ``progress`` beats when ``written``, the number of bytes
    without a gap, has grown. The spool can be read until ``close``, which gives the room back.
    """

    def __init__(
        self,
        content: "Content",
        target: Target,
        digest: Digest,
        spool: DiskSpool,
        room: BodyReservation,
    ) -> None:
        self.size: int | None = None
        self.progress: Final = Pulse()
        self._content = content
        self._target = target
        self._digest = digest
        self._spool = spool
        self._room = room
        self._verifier = DigestVerifier(digest)
        self._hashed = 0  # changed by the thread only, or while there is none
        self._received = Intervals()
        self._stored = Intervals()
        self._collected: deque[Piece] = deque()  # appended here, taken by the thread
        self._waiting = 0  # bytes, collected or being written
        self._saving: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def written(self) -> int:
        """Bytes that can be read, from the first on."""
        return self._stored.contiguous

    @property
    def fd(self) -> int:
        """The spool's descriptor."""
        return self._spool.fd

    def read(self, start: int, stop: int) -> bytes:
        """Return written bytes. Blocks. Raises ``StorageError``."""
        return self._spool.read(start, stop)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Accept some bytes, which are readable a little later.

        Bytes that a second source sends again are ignored, or the file could differ from what was
        hashed. Raises ``StorageError``, also for earlier bytes.
        """
        known = self._received.contiguous
        if offset < known:
            data, offset = data[known - offset :], known
        if not data:
            return
        self._received.add(offset, offset + len(data))
        await self._room.grow(self._needed)
        self._raise_failure()
        self._collected.append(Piece(offset, data))
        self._waiting += len(data)
        self._start()
        while self._saving is not None and self._waiting >= MAX_WAITING:
            await self.progress.wait()
        self._raise_failure()

    async def prove(self) -> None:
        """Return once all bytes are written and match the digest.

        Raises ``ContentMismatch``, ``UpstreamUnavailable`` for a body that is too short or too
        long, ``StorageError``.
        """
        await self._all_saved()
        self._raise_failure()
        if self.size not in (None, self.written) or self._received.highest != self.written:
            raise UpstreamUnavailable(f"{self._target} {self._digest}: the body broke off")
        self.size = self.written
        while self._hashed < self.size:
            await in_thread(lambda: self._catch_up(self.written), Pool.COMPUTE)
        self._verifier.check(self._target)

    async def commit(self, *, is_public: bool) -> bool:
        """Store and index the proven blob, and link it to the repository.

        Returns True if it was not held. Raises ``StorageError``.
        """
        await self._content.links.add(self._target, [self._digest])
        return await self.store(is_public=is_public)

    async def store(self, *, is_public: bool) -> bool:
        """Store and index the proven blob; no repository may serve it yet.

        Returns True if it was not held. Raises ``StorageError``.
        """
        arrived = Descriptor("", self._digest, self.written)
        return await self._content.adopt(self._room, self._spool, arrived, is_public=is_public)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._collected.clear()
        try:
            await run_to_completion(self._all_saved())  # a cancelled task does not stop its thread
        finally:
            self._spool.discard()

    def close(self) -> None:
        """Close the spool and release its space. A second call does nothing."""
        self._spool.close()
        self._room.release()

    @property
    def _needed(self) -> int:
        """Bytes of disk, at most, that the spool takes with all that has been received.

        Gaps take no room. Each interval may begin and end inside a block; the one that begins at
        byte 0 needs no more than a file of its length.
        """
        intervals = max(0, len(self._received) - 1)
        return min(self._received.highest, self._received.count + intervals * 2 * BLOCK)

    def _start(self) -> None:
        """Save the collected bytes unless a thread does: a little here, more in a thread."""
        if self._saving is not None or not self._collected:
            return
        if self._waiting <= _INLINE and self._hashed == self.written:
            pieces = self._take()
            try:
                self._save(pieces)
            except BaseException as error:
                self._failure = error
            else:
                self._saved(pieces)
            return
        self._saving = start_in_thread(self._drain, Pool.WRITE)
        self._saving.add_done_callback(self._drained)

    def _drain(self) -> None:
        """Save until nothing is left. Runs in a thread."""
        while pieces := self._take():
            self._save(pieces)
            self._loop.call_soon_threadsafe(self._saved, pieces)

    def _take(self) -> list[Piece]:
        """Return the next collected bytes, about ``STEP``; empty if there are none."""
        pieces: list[Piece] = []
        count = 0
        with suppress(IndexError):  # none left, or cleared by the loop's thread meanwhile
            while count < STEP:
                pieces.append(self._collected.popleft())
                count += len(pieces[-1].data)
        return pieces

    def _drained(self, saving: asyncio.Future[None]) -> None:
        """Begin again if something was collected when the thread had just ended."""
        self._saving = None
        self._failure = self._failure or saving.exception()
        if self._failure is None:
            self._start()
        self.progress.beat()

    def _saved(self, pieces: list[Piece]) -> None:
        """Let readers read the written bytes."""
        for offset, data in pieces:
            self._stored.add(offset, offset + len(data))
            self._waiting -= len(data)
        self.progress.beat()

    async def _all_saved(self) -> None:
        while self._saving is not None:
            await self.progress.wait()

    def _save(self, pieces: list[Piece]) -> None:
        """Hash and write. Blocks."""
        self._catch_up(self.written)
        for offset, data in pieces:
            if offset == self._hashed:
                self._verifier.update(data)
                self._hashed += len(data)
            self._spool.write(data, offset)

    def _catch_up(self, readable: int) -> None:
        """Hash what was written behind a gap that has closed; some of it if it is much. Blocks."""
        stop = min(readable, self._hashed + _CATCH_UP)
        hash_stored(self._verifier, self._spool, self._hashed, stop)
        self._hashed = max(stop, self._hashed)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
