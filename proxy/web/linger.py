"""Closes a connection so that the client receives the last answer.

A socket that is closed while received bytes are unread is reset by the kernel. The reset overtakes
the answer, or makes the client's next write fail, and the client never reads why. So the sending
side is shut down first, and what still comes is read and discarded until the client closes
(RFC 9112 §9.6).
"""

import asyncio
from typing import Final

SECONDS: Final = 5.0
"""How long a client may take to close."""

MAX_BYTES: Final = 16 * 1024 * 1024
"""How much of what it still sends is discarded before the connection is cut off."""


class Linger:
    """The end of one connection, from its last answer on."""

    __slots__ = ("_left", "_timer", "_transport", "began")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, after the answer was written to ``transport``."""
        self._transport = transport
        self._left = MAX_BYTES
        self.began = loop.time()
        self._timer = loop.call_later(SECONDS, transport.abort)
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
        else:  # TLS: its close sends all, says so, and discards what comes
            transport.close()

    def received(self, data: bytes) -> None:
        """Discard what the client still sends."""
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()

    def end(self) -> None:
        """Note that the connection is closed."""
        self._timer.cancel()
