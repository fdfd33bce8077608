"""Sends bodies from memory at the pace at which clients read them.

aiohttp joins headers and body and passes them to the transport in one write, which copies the body
for a client that does not read. This module writes slices of a body without copies, each after the
client has read most of the previous one. A body for several clients is in memory once;
``SendBuffer`` limits the memory of all bodies.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp.web import BaseRequest, Response, StreamResponse

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

PIECE: Final = 64 * 1024
"""Bytes of one write, and the most that may wait in a connection's buffer before the next one."""

MAX_BYTES: Final = 32 * 1024 * 1024
"""Maximum number of bytes of all long bodies in progress."""

PIECES_EACH_TURN: Final = 16
"""Maximum number of pieces that all connections write in one turn of the event loop."""


class BodyReceiver(Protocol):
    """The connection that receives a body."""

    def cut_off(self, reason: str) -> None:
        """Close the connection immediately."""


class Pace(Protocol):
    """The rate at which a client may receive, by ``access.limits``."""

    async def acquire(self, most: int) -> int:
        """Wait until bytes may be sent; return how many, at least one and at most ``most``."""

    async def acquire_small(self, size: int) -> None:
        """Wait until a body may be sent, but not longer than clients wait for headers."""

    def refund(self, size: int) -> None:
        """Return acquired bytes that were not sent."""


class Turns:
    """Permits ``each`` steps in one turn of the event loop, in the order of the waiters.

    The kernel accepts megabytes for each connection, even if the client reads nothing. A task that
    writes until the kernel accepts no more never yields to the loop, and hundreds of such tasks
    delay everything else for seconds.
    """

    def __init__(self, each: int = PIECES_EACH_TURN) -> None:
        self._each = each
        self._left = each
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    async def take(self) -> None:
        """Wait until one more step is permitted."""
        loop = asyncio.get_running_loop()
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._begin)
        if self._left:
            self._left -= 1
            return
        step: asyncio.Future[None] = loop.create_future()
        self._waiting.append(step)
        await step

    def _begin(self) -> None:
        """Begin a turn: waiters get their steps first."""
        self._left = self._each
        while self._left and self._waiting:
            step = self._waiting.popleft()
            if not step.done():  # cancelled if its connection was closed
                step.set_result(None)
                self._left -= 1
        self._is_scheduled = self._left < self._each
        if self._is_scheduled:
            asyncio.get_running_loop().call_soon(self._begin)


class SendBuffer:
    """The long bodies in progress, each kept once; ``limit`` is in bytes.

    Above the limit the receivers that started first are disconnected: a client that reads has
    finished long before, and one that does not must not delay others. One body may exceed it.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._bodies: dict[bytes, tuple[bytes, int]] = {}  # first copy, number of receivers
        self._receivers: dict[BodyReceiver, bytes] = {}  # in the order in which they started
        self.bytes = 0
        self.turns: Final = Turns()
        """Every piece takes a step of these."""

    @contextmanager
    def sending(self, body: bytes, receiver: BodyReceiver) -> Iterator[bytes]:
        """Yield the shared copy of ``body``, and account for it while the context is open."""
        first, uses = self._bodies.get(body, (body, 0))
        del body  # this frame would keep a second copy
        self._bodies[first] = first, uses + 1
        self.bytes += 0 if uses else len(first)
        self._receivers[receiver] = first
        self._make_room(receiver)
        try:
            yield first
        finally:
            self._remove(receiver)

    def _make_room(self, newest: BodyReceiver) -> None:
        while self.bytes > self._limit:
            oldest = next(iter(self._receivers))
            if oldest is newest:
                return
            self._remove(oldest)
            oldest.cut_off("too many long answers are read too slowly")

    def _remove(self, receiver: BodyReceiver) -> None:
        """Stop accounting for a receiver; a disconnected one is already removed."""
        body = self._receivers.pop(receiver, None)
        if body is None:
            return
        first, uses = self._bodies.pop(body)
        if uses > 1:
            self._bodies[first] = first, uses - 1
        else:
            self.bytes -= len(first)


class PacedResponse(Response):
    """A response with a body from memory, of any length."""

    _receiver: Any = None

    pace: Pace | None = None
    """The rate of the body; None: as fast as the client reads."""

    async def prepare(self, request: BaseRequest) -> "AbstractStreamWriter | None":
        """Send the headers, with the first piece of the body."""
        if request.method != "HEAD" and self.status not in (204, 304):
            self._receiver = request.protocol
            if self.pace is not None and isinstance(self.body, bytes) and len(self.body) <= PIECE:
                await self.pace.acquire_small(len(self.body))
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the body, and end the response. Raises ``ConnectionError``."""
        body, receiver = self.body, self._receiver
        if receiver is None or not isinstance(body, bytes) or len(body) <= PIECE:
            await super().write_eof(data)
            return
        self.body = None
        with receiver.send_buffer.sending(body, receiver) as shared:
            del body
            pieces = memoryview(shared)
            while pieces:
                size = min(PIECE, len(pieces))
                if self.pace is not None:
                    size = await self.pace.acquire(size)
                await receiver.send_buffer.turns.take()
                await self.write(pieces[:size])
                pieces = pieces[size:]
        await StreamResponse.write_eof(self)
