"""Writes one arriving blob: room is reserved first, bytes are hashed on the way to the disk.

A thread takes all that has been collected, hashes what is in order from memory, and writes it; the
next bytes are collected meanwhile. So a fast body costs one hop to a thread per megabyte, and a
slow one is readable as soon as it arrives. Bytes that come ahead of a gap (parallel ranges) are
written at once and hashed from the page cache when the gap has closed.
"""

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from proxy.content.proof import hash_stored
from proxy.content.reservations import Arrival
from proxy.content.stretches import Stretches
from proxy.core.errors import UpstreamUnavailable
from proxy.core.names import Digest, DigestVerifier, Target
from proxy.core.records import BLOCK, Descriptor
from proxy.core.sources import Piece
from proxy.runtime.executors import Pool, in_thread, start_in_thread, to_its_end
from proxy.runtime.pulse import Pulse
from proxy.storage import Spool

if TYPE_CHECKING:
    from proxy.content.content import Content

HOP: Final = 1024 * 1024
"""Bytes that may wait for the thread; then the source has to wait too."""

_INLINE: Final = 32 * 1024
"""Bytes up to which hashing and writing on the loop is cheaper than a thread."""

_CATCH_UP: Final = 4 * HOP
"""Bytes that one hop reads back at most, so that what arrives is not held up for long."""


class Writer:
    """One blob on its way to the store. Leaving its context removes what was not committed.

    ``size`` is None until it is known. ``progress`` beats when ``written``, the number of bytes
    without a gap, has grown. The spool can be read until ``close``, which gives the room back.
    """

    def __init__(
        self, content: "Content", target: Target, digest: Digest, spool: Spool, room: Arrival
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
        self._received = Stretches()
        self._stored = Stretches()
        self._collected: list[Piece] = []
        self._collected_bytes = 0
        self._hop: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    @property
    def written(self) -> int:
        """Bytes that can be read, from the first on."""
        return self._stored.contiguous

    @property
    def fd(self) -> int | None:
        """The spool's descriptor, if it is a file."""
        return self._spool.fd

    def read(self, start: int, stop: int) -> bytes:
        """Return written bytes. Blocks. Raises ``StorageError``."""
        return self._spool.read(start, stop)

    async def write(self, offset: int, data: bytes) -> None:
        """Take some bytes; they are readable a little later.

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
        self._collected_bytes += len(data)
        if self._hop is None:
            self._save_collected()
        while self._hop is not None and self._collected_bytes >= HOP:
            await self.progress.wait()
        self._raise_failure()

    async def prove(self) -> None:
        """Return once all bytes are written and are what the digest names.

        Raises ``ContentMismatch``, ``UpstreamUnavailable`` for a body that is too short or too
        long, ``StorageError``.
        """
        await self._hops_ended()
        self._raise_failure()
        if self.size not in (None, self.written) or self._received.highest != self.written:
            raise UpstreamUnavailable(f"{self._target} {self._digest}: the body broke off")
        self.size = self.written
        while self._hashed < self.size:
            await in_thread(lambda: self._catch_up(self.written), Pool.COMPUTE)
        self._verifier.check(self._target)

    async def commit(self, *, is_public: bool) -> None:
        """Store and index the proven blob, and link it to the repository.

        Raises ``StorageError``.
        """
        await self._content.index.link(self._target, [self._digest])
        arrived = Descriptor("", self._digest, self.written)
        await self._content.adopt(self._room, self._spool, arrived, is_public=is_public)

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
            await to_its_end(self._hops_ended())  # a cancelled task does not stop its thread
        finally:
            self._spool.discard()

    def close(self) -> None:
        """Close the spool and give its room back. A second call does nothing."""
        self._spool.close()
        self._room.release()

    @property
    def _needed(self) -> int:
        """Bytes of disk, at most, that the spool takes with all that has been received.

        Gaps take no room. Each stretch may begin and end inside a block; the one that begins at
        byte 0 needs no more than a file of its length.
        """
        stretches = max(0, len(self._received) - 1)
        return min(self._received.highest, self._received.count + stretches * 2 * BLOCK)

    def _save_collected(self) -> None:
        """Hash and write what has been collected: a little here, more in a thread."""
        pieces, count = self._collected, self._collected_bytes
        self._collected, self._collected_bytes = [], 0
        if count <= _INLINE and self._hashed == self.written:
            try:
                self._save(pieces, self.written)
            except BaseException as error:
                self._failure = error
            self._saved(pieces)
            return
        readable = self.written
        self._hop = start_in_thread(lambda: self._save(pieces, readable), Pool.WRITE)
        self._hop.add_done_callback(lambda hop: self._hop_ended(hop, pieces))

    async def _hops_ended(self) -> None:
        while self._hop is not None:
            await self.progress.wait()

    def _hop_ended(self, hop: asyncio.Future[None], pieces: list[Piece]) -> None:
        self._hop = None
        self._failure = self._failure or hop.exception()
        self._saved(pieces)

    def _saved(self, pieces: list[Piece]) -> None:
        """Count what has been written, and begin with what was collected meanwhile."""
        if self._failure is None:
            for offset, data in pieces:
                self._stored.add(offset, offset + len(data))
            if self._collected:
                self._save_collected()
        self.progress.beat()

    def _save(self, pieces: list[Piece], readable: int) -> None:
        """Hash and write; ``readable`` bytes were written without a gap before. Blocks."""
        self._catch_up(readable)
        for offset, data in pieces:
            if offset == self._hashed:
                self._verifier.take(data)
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
