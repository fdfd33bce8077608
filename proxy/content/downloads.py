"""One download, many readers.

A flight spools, hashes and wakes its readers. It belongs to no request: any client may leave, the
first included. A reader is an offset into the spool, so memory does not grow with readers or with
slow ones. The last byte is held back until the digest is proven: a body that lacks its end is
visibly broken, a wrong one that is complete is not.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

import structlog

from proxy.core.errors import RegistryError, StorageError, UpstreamUnavailable
from proxy.core.names import Digest, DigestVerifier, Target
from proxy.core.records import BLOCK
from proxy.runtime.executors import Pool, in_thread
from proxy.storage import Spool

_INLINE: Final = 32 * 1024
"""Bytes up to which hashing and writing on the loop is cheaper than a thread."""

_STRETCH: Final = 1024 * 1024
"""Bytes that are hashed at a time."""

_READ: Final = 256 * 1024
"""Bytes that a processor's own cache holds."""

_TAIL: Final = 1

Sink = Callable[[int, bytes], Awaitable[None]]
"""Takes some bytes of a body and the offset at which they belong; returns when they are safe."""

Pour = Callable[[Sink], Awaitable[None]]
"""Gives a sink every byte of a body once, in any order, from several offsets at the same time."""

log = structlog.get_logger(__name__)


class Download:
    """One download in progress: unopened, then open and growing, then landed or failed.

    One that is *ahead* was begun before anybody asked for it.
    """

    def __init__(self, target: Target, digest: Digest) -> None:
        self.target = target
        self.digest = digest
        self.size: int | None = None
        self.written = 0
        self.landed = False
        self.is_ahead = False
        self.failure: Exception | None = None
        self._spool: Spool | None = None
        self._ends: dict[int, int] = {}  # by start, of stretches that have a gap before them
        self._starts: dict[int, int] = {}  # the same by end
        self._received = 0
        self._highest = 0
        self._writers = 0
        self._on_closed: Callable[[], None] = lambda: None
        self._readers = 1  # the pump's own hold on the spool
        self._more = asyncio.Event()

    def __repr__(self) -> str:
        state = "landed" if self.landed else "failed" if self.failure else "open"
        return f"<Flight {self.digest[:19]} {self.written}/{self.size} {state}>"

    @property
    def is_open(self) -> bool:
        """Upstream has answered, so ``size`` is what is known (None: not announced)."""
        return self._spool is not None

    @property
    def is_wanted(self) -> bool:
        """Somebody reads it besides the pump."""
        return self._readers > 1

    @property
    def fd(self) -> int:
        """The spool's descriptor, for those who hold a reader."""
        assert self._spool is not None
        return self._spool.fd

    def open(self, spool: Spool, size: int | None) -> None:
        """Begin to grow."""
        self._spool, self.size = spool, size
        self._wake()

    def on_closed(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when the last reader has left, and the spool takes no more room."""
        self._on_closed = call

    async def pump(self, pour: Pour, room_for: Callable[[int], Awaitable[None]]) -> None:
        """Spool a body and prove it.

        ``room_for`` is awaited with the bytes for which the spool is about to need room. Raises
        ``ContentMismatch``, ``StorageError``, or what the body raises.
        """

        async def take(offset: int, chunk: bytes) -> None:
            self._received += len(chunk)
            self._highest = max(self._highest, offset + len(chunk))
            self._writers += 1
            try:
                await room_for(self._needed)
                await self._write(offset, chunk)
            finally:
                self._writers -= 1

        proof = DigestVerifier(self.digest)
        try:
            async with asyncio.TaskGroup() as group:
                proving = group.create_task(self._prove(proof), name=f"prove {self.digest[:19]}")
                await pour(take)
                if self.size not in (None, self.written):
                    raise UpstreamUnavailable(f"{self.target} {self.digest}: the body broke off")
                self.size = self.written
                self._wake()
                await proving
        except BaseExceptionGroup as troubles:
            raise troubles.exceptions[0] from None
        proof.check(self.target)
        self.landed = True
        self._wake()

    @property
    def _needed(self) -> int:
        """Bytes of disk, at most, that the spool takes with what is being written.

        Pieces come from several offsets, with holes between them that take no room. Each stretch
        may begin and end inside a block; that of the first byte is a whole file and does not.
        """
        stretches = len(self._ends) + self._writers - 1
        return min(self._highest, self._received + stretches * 2 * BLOCK)

    async def _write(self, offset: int, chunk: bytes) -> None:
        """Put bytes into the spool, and let those be read that have no gap before them."""
        assert self._spool is not None
        write = partial(self._spool.write, chunk, offset)
        if len(chunk) <= _INLINE:
            write()
        else:
            await in_thread(write, Pool.WRITE)
        before = self.written
        self._cover(offset, offset + len(chunk))
        if self.written > before:
            self._wake()

    def _cover(self, offset: int, end: int) -> None:
        """Note what has been written; what has no gap before it counts as such."""
        start = self._starts.pop(offset, offset)
        self._starts[end], self._ends[start] = start, end
        while (end := self._ends.pop(self.written, -1)) >= 0:
            del self._starts[end]
            self.written = end

    async def _prove(self, proof: DigestVerifier) -> None:
        """Hash what has come, in its order, behind the writing; return when all is hashed."""
        position = 0
        while position != self.size:
            stretch = min(_STRETCH, self.written - position)
            is_last = position + stretch == self.size
            if stretch < _STRETCH and not is_last:
                await self._more.wait()
                continue
            hash_it = partial(self._hash, proof, position, stretch)
            if stretch <= _INLINE:
                hash_it()
            else:
                await in_thread(hash_it, Pool.COMPUTE)
            position += stretch

    def _hash(self, proof: DigestVerifier, offset: int, count: int) -> None:
        """Hash what was written a moment ago: it comes from the page cache."""
        end = offset + count
        while offset < end:
            try:
                chunk = os.pread(self.fd, min(_READ, end - offset), offset)
            except OSError as error:
                raise StorageError(f"reading the spool: {error}") from error
            if not chunk:
                raise StorageError("the spool shrank")
            proof.take(chunk)
            offset += len(chunk)

    def fail(self, failure: Exception) -> None:
        """Let every reader know why there is no more; nothing changes after landing."""
        if not self.landed:
            self.failure = failure
            self._wake()

    def hold(self) -> None:
        """Keep the spool open for one more reader."""
        self._readers += 1

    def release(self) -> None:
        """End a reader's hold; the last one closes the spool."""
        self._readers -= 1
        if self._readers == 0:
            if self._spool is not None:
                self._spool.close()
            self._on_closed()

    async def opened(self) -> None:
        """Return once upstream has answered. Raises what failed before that."""
        await self._until(lambda: self.is_open)

    async def proven(self) -> None:
        """Return once all has come and is what the digest names. Raises what failed."""
        await self._until(lambda: self.landed)

    async def readable(self, offset: int) -> int:
        """Return the end of what may be read from ``offset``; ``offset`` itself at the very end.

        Waits for more. Raises what failed.
        """
        while True:
            more = self._more
            if self.landed:
                return max(self.written, offset)
            if self.failure is not None:
                raise self.failure
            if self.written - _TAIL > offset:
                return self.written - _TAIL
            await more.wait()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self.failure is not None:
                raise self.failure
            await self._more.wait()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()


class Reader:
    """One request's hold on a flight; close it when done."""

    def __init__(
        self, flight: Download, on_close: Callable[[Download], None], *, first: bool
    ) -> None:
        flight.hold()
        self.flight = flight
        self.first = first
        self._on_close = on_close
        self._closed = False

    def close(self) -> None:
        """Let go of the flight; twice does no harm."""
        if not self._closed:
            self._closed = True
            self.flight.release()
            self._on_close(self.flight)


class Run(Protocol):
    """Downloads one flight: opens it, pumps it, stores it."""

    def __call__(self, flight: Download) -> Coroutine[Any, Any, None]:
        """Return when the flight has landed and is stored. Raises what failed."""


class Downloads:
    """All downloads in progress, by upstream and digest; owns their tasks.

    Until its digest is proven, a body is only the word of the upstream that sends it. So clients
    of one upstream never read the unproven bytes of another, and two upstreams may send the same
    digest at the same time.

    A download that all its readers have left goes on if at least the share ``finish_from`` (0 to
    1) of it has come: 0 finishes everything, above 1 nothing.
    """

    def __init__(self, finish_from: float = 0.0) -> None:
        self._finish_from = finish_from
        self._live: dict[tuple[str, Digest], Download] = {}
        self._tasks: dict[Download, asyncio.Task[None]] = {}

    def all(self) -> list[Download]:
        """Return the downloads in progress."""
        return list(self._live.values())

    def live(self, target: Target, digest: Digest) -> Download | None:
        """Return the download that ``join`` would join."""
        return self._live.get((target.upstream, digest))

    def join(self, target: Target, digest: Digest, run: Run) -> Reader:
        """Return a reader of the upstream's one download of ``digest``, begun here if need be."""
        flight = self.live(target, digest)
        if flight is not None:
            return Reader(flight, self._left, first=False)
        flight = self._live[target.upstream, digest] = Download(target, digest)
        task = asyncio.create_task(self._fly(flight, run), name=f"flight {digest[:19]}")
        self._tasks[flight] = task
        task.add_done_callback(lambda _: self._ended(flight))
        return Reader(flight, self._left, first=True)

    async def ended(self, target: Target, digest: Digest) -> None:
        """Return once the download in progress, if any, is stored or has failed."""
        flight = self.live(target, digest)
        if flight is not None and (task := self._tasks.get(flight)) is not None:
            await asyncio.wait([task])

    def abandon(self, reader: Reader) -> None:
        """Let go of a flight; it ends here unless it has landed or somebody else reads it."""
        reader.close()
        flight = reader.flight
        if not flight.landed and not flight.is_wanted:
            self._drop(flight)

    async def close(self) -> None:
        """Cancel what still flies; let what has landed be stored; wait until all have ended."""
        for flight, task in self._tasks.items():
            if not flight.landed:
                task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _left(self, flight: Download) -> None:
        """Drop a download that nobody waits for if hardly any of it has come."""
        if self._finish_from <= 0 or flight.landed or flight.is_wanted:
            return
        share = flight.written / flight.size if flight.size else 0.0
        if share < self._finish_from:
            self._drop(flight)

    def _drop(self, flight: Download) -> None:
        task = self._tasks.get(flight)
        if task is not None:
            log.info("download dropped", digest=flight.digest, bytes=flight.written)
            self._retire(flight)
            task.cancel()

    async def _fly(self, flight: Download, run: Run) -> None:
        """Run a flight; nobody waits for this task, so its failure lives on in the flight."""
        failure: Exception = _cancelled()
        try:
            await run(flight)
        except (RegistryError, StorageError) as error:
            failure = error
        except Exception:
            log.exception("a download failed in an unforeseen way", digest=flight.digest)
            failure = RegistryError("internal error")
        finally:
            self._end(flight, failure)

    def _end(self, flight: Download, failure: Exception) -> None:
        self._retire(flight)
        flight.fail(failure)
        flight.release()

    def _ended(self, flight: Download) -> None:
        """End a flight whose task was cancelled before its first step: no line of it has run."""
        del self._tasks[flight]
        if flight.failure is None and not flight.landed:
            self._end(flight, _cancelled())

    def _retire(self, flight: Download) -> None:
        """Let the next request for this digest begin anew.

        A flight that was dropped ends later than its successor begins, and leaves that alone.
        """
        if self.live(flight.target, flight.digest) is flight:
            del self._live[flight.target.upstream, flight.digest]


def _cancelled() -> UpstreamUnavailable:
    return UpstreamUnavailable("the download was cancelled")
