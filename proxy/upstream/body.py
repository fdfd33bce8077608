"""One blob's body from a registry: over one connection, or over several if that one is slow.

CDNs and long round trips limit one connection; several with ``Range`` requests are faster. A
registry that does not support ranges costs one refused request, and the first connection continues
alone.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.core.errors import (
    RegistryError,
    UpstreamFailure,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.core.sources import Piece
from proxy.runtime.executors import run_to_completion
from proxy.runtime.pulse import Pulse
from proxy.upstream.bandwidth import Bandwidth
from proxy.upstream.client import Client, UpstreamRequest
from proxy.upstream.connection import RESUME_PAUSE, Connection
from proxy.upstream.ranges import ByteRange, MissingRanges, SplitPolicy
from proxy.upstream.slots import PreemptibleSlot, Slots

FAST: Final = 100_000_000
"""Bytes per second. A first connection of this speed gets no workers."""

_WINDOW: Final = 0.25
"""Seconds of waiting for the first connection after which its speed is judged."""

_QUEUE: Final = 1024 * 1024
"""Maximum number of bytes from workers that wait to be consumed."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """Parameters of a download: attempts without progress, pieces of a large body, speed limit."""

    resumes: int
    pieces: SplitPolicy
    bandwidth: Bandwidth | None = None


class RangeWorker:
    """One more connection, for as long as it helps and its slot is not needed."""

    def __init__(
        self, connection: Connection, byte_range: ByteRange, slot: PreemptibleSlot
    ) -> None:
        self.connection = connection
        self.byte_range: ByteRange | None = byte_range
        self.slot = slot


class RegistryBody:
    """One blob's body from ``offset`` on. Close it when done: that frees its ``resources``.

    ``may_split``: the first answer says that parallel ranges could work.
    """

    is_confirmed = True

    def __init__(
        self,
        client: Client,
        request: UpstreamRequest,
        first: Connection,
        policy: DownloadPolicy,
        slots: Slots,
    ) -> None:
        self.size = first.size
        self.is_public = False
        self._client = client
        self._request = request
        self._first = first
        self._policy = policy
        self._slots = slots
        self._resources = AsyncExitStack()
        self._ranges = MissingRanges(float("inf"), policy.pieces)
        self._wanted = 1  # connections
        self._is_proven = False  # a range has been answered as it should
        self._failure: RegistryError | None = None  # of the first connection
        self._crash: BaseException | None = None
        self._lead: asyncio.Task[None] | None = None
        self._workers: dict[asyncio.Task[None], RangeWorker] = {}
        self._should_look = False  # the first connection may find bytes to fetch by now
        self._queue: deque[Piece] = deque()
        self._queued = 0
        self._changed = Pulse()
        self._watched_since = 0.0
        self._watched_bytes = 0

    def begin(
        self, offset: int, resources: AsyncExitStack, *, may_split: bool, is_public: bool
    ) -> None:
        """Fetch from ``offset`` on; ``resources`` are closed with the body."""
        self.is_public = is_public
        size = float("inf") if self.size is None else self.size
        self._ranges = MissingRanges(size, self._policy.pieces, offset)
        self._resources = resources
        is_large = self.size is not None and size - offset >= self._policy.pieces.start_from
        if may_split and is_large and self._policy.pieces.connections > 1:
            self._wanted = 2

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield every byte once: in order over one connection, else in any order.

        Raises ``UpstreamFailure``.
        """
        async with aclosing(self._over_one_connection()) as pieces:
            async for piece in pieces:
                yield piece
                if self._is_slow(len(piece.data)):
                    break
        if self._ranges.is_done:
            return
        try:
            async with aclosing(self._over_several_connections()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await self._stop()

    async def aclose(self) -> None:
        """End the transfer. A second call does nothing."""
        await self._stop()
        self._first.close()
        await self._resources.aclose()

    async def _over_one_connection(self) -> AsyncGenerator[Piece, None]:
        """Fetch over the first connection, without a task or a queue."""
        byte_range = self._ranges.claim(1)
        if byte_range is None:
            return
        try:
            async with aclosing(self._first.pieces(byte_range, self._policy.resumes)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._ranges.release(byte_range)

    async def _over_several_connections(self) -> AsyncGenerator[Piece, None]:
        """Fetch over several connections, each a task that fills the queue.

        The first one leads: it fetches bytes without a worker, and stays until all is fetched.
        Workers end when upstream refuses, when nothing is left, or when their slot is preempted;
        another one claims the rest of their bytes. If the first one fails, workers finish alone,
        and its failure counts only if bytes are left then.
        """
        self._start_lead()
        self._start_workers()
        while True:
            while self._queue:
                piece = self._queue.popleft()
                self._queued -= len(piece.data)
                self._changed.beat()
                yield piece
            if self._crash is not None:
                raise self._crash
            if self._lead is None:
                if self._ranges.is_done:
                    return
                if self._failure is not None and not self._workers:
                    raise self._failure
                if self._failure is None and (self._should_look or not self._workers):
                    self._start_lead()
            await self._changed.wait()

    async def _stop(self) -> None:
        """Cancel all tasks and wait for their end."""
        tasks = [*self._workers, *([] if self._lead is None else [self._lead])]
        for task in tasks:
            task.cancel()
        if tasks:
            await run_to_completion(_all_ended(tasks))

    async def _put(self, piece: Piece) -> None:
        """Queue a piece, and wait while too much is queued."""
        self._queue.append(piece)
        self._queued += len(piece.data)
        self._changed.beat()
        while self._queued > _QUEUE:
            await self._changed.wait()

    def _start_lead(self) -> None:
        """Start the first connection's task; it claims its bytes before workers claim theirs."""
        self._should_look = False
        byte_range = self._ranges.claim(self._connections)
        if byte_range is not None:
            self._lead = asyncio.create_task(self._leading(byte_range), name="download lead")
            self._lead.add_done_callback(self._lead_ended)

    def _lead_ended(self, task: asyncio.Task[None]) -> None:
        self._lead = None
        self._note_crash(task)
        self._changed.beat()

    async def _leading(self, first: ByteRange) -> None:
        """Fetch bytes without a worker on the first connection, beginning with a range."""
        byte_range: ByteRange | None = first
        while byte_range is not None:
            try:
                if not await self._can_lead(byte_range):
                    return
                async with aclosing(self._first.pieces(byte_range, self._policy.resumes)) as pieces:
                    async for piece in pieces:
                        await self._put(piece)
                        if self._is_slow(len(piece.data)):
                            self._start_workers()
            except RegistryError as error:
                self._failure = error
                return
            finally:
                self._ranges.release(byte_range)
            byte_range = self._ranges.claim(self._connections)

    async def _can_lead(self, byte_range: ByteRange) -> bool:
        """Let the first connection continue with a range; False if workers should fetch it instead.

        If the last worker has ended because ranges are now refused, the whole body is requested
        again: duplicate bytes cost less than a failed pull.
        """
        if self._first.leads_to(byte_range.position):
            return True
        if self._workers and not self._is_proven:
            return False  # if ranges turn out to be refused, the open answer must go on
        assert self.size is not None
        for _ in range(1 + self._policy.resumes):
            try:
                await self._first.join(byte_range, self.size)
            except RegistryError as error:
                self._wanted = 1
                log.info("the first connection is too slow", reason=error.message)
                if self._workers:
                    return False
                if not isinstance(error, UpstreamUnavailable | UpstreamTimeout):
                    break
                await asyncio.sleep(RESUME_PAUSE)
            else:
                return True
        await self._first.restart()
        return True

    @property
    def _connections(self) -> int:
        """Connections in use."""
        return 1 + len(self._workers)

    def _is_slow(self, count: int) -> bool:
        """Return True if the first connection needs help.

        ``count`` more bytes have arrived on it. Only waiting for the network counts: workers do
        not help against a slow disk.
        """
        if self._wanted <= self._connections:
            return False
        self._watched_bytes += count
        seconds = self._first.waited - self._watched_since
        if seconds < _WINDOW and self._watched_bytes < self._policy.pieces.smallest:
            return False
        is_slow = self._watched_bytes < FAST * seconds
        self._watched_since, self._watched_bytes = self._first.waited, 0
        return is_slow

    def _start_workers(self) -> None:
        """Start workers in free slots that no download needs."""
        while self._connections < self._wanted:
            slot = self._slots.borrow()
            if slot is None:
                return
            byte_range = self._ranges.claim(self._connections + 1)
            if byte_range is None:
                slot.release()
                return
            beside = Connection(self._client, self._request, self._first.share)
            worker = RangeWorker(beside, byte_range, slot)
            task = slot.task = asyncio.create_task(self._work(worker), name="range worker")
            self._workers[task] = worker
            task.add_done_callback(self._worker_ended)

    async def _work(self, worker: RangeWorker) -> None:
        """Fetch range after range; when upstream refuses, the rest is left to the others."""
        try:
            while worker.byte_range is not None:
                await self._fetch(worker.connection, worker.byte_range)
                self._ranges.release(worker.byte_range)
                worker.byte_range = None
                worker.byte_range = self._ranges.claim(self._connections)
        except RegistryError as error:
            self._wanted = self._connections - 1
            log.info("fewer connections", ref=self._request.ref, reason=error.message)

    async def _fetch(self, connection: Connection, byte_range: ByteRange) -> None:
        """Fetch one range; request it again from its last good byte if an answer breaks off."""
        assert self.size is not None
        fruitless = 0
        while byte_range.position < byte_range.stop:
            begun_at = byte_range.position
            await connection.join(byte_range, self.size)
            if not self._is_proven:
                self._is_proven = self._should_look = True
                self._wanted = self._policy.pieces.connections
                self._start_workers()
                self._changed.beat()
            try:
                async with aclosing(connection.pieces(byte_range, 0)) as pieces:
                    async for piece in pieces:
                        await self._put(piece)
            except UpstreamFailure:
                fruitless = 0 if byte_range.position > begun_at else fruitless + 1
                if fruitless >= self._policy.resumes:
                    raise

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        """Release a worker's slot and range, and wake the first connection."""
        worker = self._workers.pop(task)
        worker.connection.close()
        worker.slot.release()
        if worker.byte_range is not None:
            self._ranges.release(worker.byte_range)
        self._should_look = True
        self._note_crash(task)
        self._changed.beat()

    def _note_crash(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._crash = self._crash or task.exception()


async def _all_ended(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)
