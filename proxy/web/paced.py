"""Sends bodies from memory at the pace at which clients read them.

aiohttp joins headers and body, and hands over all of it: a client that does not read then costs a
copy. Here a body is written in pieces that refer to it, each after the client took most of the
last one. However many clients receive the same bytes, they are in memory once; ``Outbox`` bounds
what different bodies take together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp.web import BaseRequest, Response, StreamResponse

from proxy.web.turns import Turns

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

PIECE: Final = 64 * 1024
"""Bytes of one write, and of what waits in a connection's buffer before the next one."""

MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of all bodies together that are longer than a piece and still being sent."""


class Receiver(Protocol):
    """A connection that a body is sent to."""

    def cut_off(self, reason: str) -> None:
        """Close the connection at once."""


class Outbox:
    """The long bodies that are being sent, each kept once; ``limit`` is in bytes.

    When they exceed the limit, the receivers that have been at it longest are cut off: a client
    that reads is done long before, and one that does not must not hold up others. A single body
    may exceed the limit.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._bodies: dict[bytes, tuple[bytes, int]] = {}  # the first copy of each, and its uses
        self._receivers: dict[Receiver, bytes] = {}  # the one that began first comes first
        self.bytes = 0
        self.turns: Final = Turns()
        """To be taken for each piece."""

    @contextmanager
    def sending(self, body: bytes, receiver: Receiver) -> Iterator[bytes]:
        """Yield the one copy of ``body`` to send, and count it while the context is open."""
        first, uses = self._bodies.get(body, (body, 0))
        del body  # or this frame would keep a second copy
        self._bodies[first] = first, uses + 1
        self.bytes += 0 if uses else len(first)
        self._receivers[receiver] = first
        self._make_room(receiver)
        try:
            yield first
        finally:
            self._let_go(receiver)

    def _make_room(self, newest: Receiver) -> None:
        while self.bytes > self._limit:
            oldest = next(iter(self._receivers))
            if oldest is newest:
                return
            self._let_go(oldest)
            oldest.cut_off("too many long answers are read too slowly")

    def _let_go(self, receiver: Receiver) -> None:
        """Count a receiver no longer; does nothing for one that was cut off."""
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

    async def prepare(self, request: BaseRequest) -> "AbstractStreamWriter | None":
        """Send the headers, with the first piece of the body."""
        if request.method != "HEAD" and self.status not in (204, 304):
            self._receiver = request.protocol
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the body, and end the response. Raises ``ConnectionError``."""
        body, receiver = self.body, self._receiver
        if receiver is None or not isinstance(body, bytes) or len(body) <= PIECE:
            await super().write_eof(data)
            return
        self.body = None
        with receiver.outbox.sending(body, receiver) as shared:
            del body
            pieces = memoryview(shared)
            for start in range(0, len(shared), PIECE):
                await receiver.outbox.turns.take()
                await self.write(pieces[start : start + PIECE])
        await StreamResponse.write_eof(self)
