"""Receives a long body straight into the buffers in which it is hashed and written.

aiohttp copies a body three times: out of the event loop's buffer, out of its parser's, and into a
piece of a useful length. A body of known length needs no parser. So once the headers are parsed,
the transport is switched to the protocol below, and back to aiohttp's after the last byte, so that
the connection can be reused. This also works with TLS.
"""

import asyncio
from collections import deque
from typing import Final, Self

from aiohttp import ClientPayloadError, ClientResponse, StreamReader
from aiohttp.client_proto import ResponseHandler

READ_BUFFER: Final = 1024 * 1024
"""Bytes of one buffer, and of the shortest body that is worth the change of protocols."""

_AHEAD: Final = 2
"""Full buffers that may wait to be read. With as many the peer has to wait."""


class DirectBody(asyncio.BufferedProtocol):
    """The content of a response's ``StreamReader``, then ``left`` bytes from the transport.

    Bytes are added to a buffer and never replaced, so what was read needs no copy.
    """

    def __init__(
        self, payload: StreamReader, handler: ResponseHandler, transport: asyncio.Transport
    ) -> None:
        self._payload = payload
        self._handler = handler
        self._transport = transport
        self._ready: deque[memoryview] = deque()
        self._left = 0
        self._buffer = memoryview(b"")
        self._filled = 0  # bytes of the buffer
        self._passed = 0  # of these, moved to ``_ready``
        self._is_paused = False
        self._is_lost = False
        self._arrived = asyncio.Event()
        self._idle_timeout = handler.read_timeout

    @classmethod
    def of(cls, response: ClientResponse, most: int) -> Self | None:
        """Return the reader of a body, None if aiohttp has to read it.

        A body is taken over if ``most`` and what is left of it are at least ``READ_BUFFER``.
        """
        connection, payload = response.connection, response.content
        if connection is None or connection.transport is None or connection.protocol is None:
            return None
        current = connection.transport.get_protocol()
        if isinstance(current, cls):
            return current
        size = response.content_length
        if size is None or "Transfer-Encoding" in response.headers:
            return None
        if min(most, size - payload.total_bytes) < READ_BUFFER:
            return None
        if payload.exception() is not None or connection.transport.is_closing():
            return None
        body = cls(payload, connection.protocol, connection.transport)
        body._take_over(size)
        return body

    def _take_over(self, size: int) -> None:
        # If the parser is paused, it holds one more chunk, which is less than READ_BUFFER.
        while held := self._payload.read_nowait():
            self._ready.append(memoryview(held))
        self._left = size - self._payload.total_bytes
        self._handler.read_timeout = None
        self._handler.start_timeout()  # which stops it
        self._switch_to(self)

    @property
    def held(self) -> int:
        """Bytes that wait to be read."""
        return sum(map(len, self._ready)) + self._filled - self._passed

    @property
    def is_reading(self) -> bool:
        """False while too much is held, or all has arrived."""
        return not self._is_paused

    async def read(self, most: int) -> memoryview:
        """Return 1 to ``most`` bytes. Raises ``TimeoutError`` and ``ClientPayloadError``."""
        while not self.held:
            if self._is_lost:
                raise ClientPayloadError("the connection was lost")
            self._arrived.clear()
            async with asyncio.timeout(self._idle_timeout):
                await self._arrived.wait()
        if not self._ready:
            self._pass_on()
        piece = self._ready.popleft()
        if len(piece) > most:
            self._ready.appendleft(piece[most:])
            piece = piece[:most]
        self._pace()
        if self._left == 0 and not self.held:
            self._switch_to(self._handler)
            self._payload.feed_eof()
        return piece

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer for the next bytes, which never exceeds the body."""
        if self._filled == len(self._buffer):
            self._buffer = memoryview(bytearray(min(READ_BUFFER, self._left)))
            self._filled = self._passed = 0
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that were written to the buffer."""
        self._filled += nbytes
        self._left -= nbytes
        if self._filled == len(self._buffer):
            self._pass_on()
            self._pace()
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the reader notice it, and aiohttp."""
        self._is_lost = True
        self._arrived.set()
        self._handler.connection_lost(exc)

    def _pass_on(self) -> None:
        self._ready.append(self._buffer[self._passed : self._filled])
        self._passed = self._filled

    def _pace(self) -> None:
        """Let bytes arrive if they belong to the body and not too many wait to be read."""
        should_pause = self._left == 0 or len(self._ready) >= _AHEAD
        if should_pause and not self._is_paused:
            self._transport.pause_reading()
        elif self._is_paused and not should_pause:
            self._transport.resume_reading()
        self._is_paused = should_pause

    def _switch_to(self, protocol: asyncio.BaseProtocol) -> None:
        """Change protocols while no bytes arrive: uvloop would hand them to the wrong one."""
        if not self._is_paused:
            self._transport.pause_reading()
        self._is_paused = False
        self._transport.set_protocol(protocol)
        self._transport.resume_reading()
