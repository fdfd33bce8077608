"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from aiohttp.web import StreamResponse

from proxy.core.errors import Overloaded
from proxy.web.admin.api.routes import Caller

MAX_STREAMS: Final = 200
"""Streams that are open at a time."""

_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx then forwards each event immediately
    "X-Content-Type-Options": "nosniff",
}

Result = TypeVar("Result")


class Streams:
    """The open streams of events. ``close`` ends them."""

    def __init__(self, limit: int = MAX_STREAMS) -> None:
        self._limit = limit
        self._open: set[asyncio.Future[None]] = set()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End all streams, and open no more."""
        self._is_closed = True
        for end in self._open:
            if not end.done():
                end.set_result(None)

    @asynccontextmanager
    async def opened(self, caller: Caller) -> AsyncIterator["EventStream"]:
        """Open a stream, which ends with the context. Raises ``Overloaded``.

        A client that does not read delays only its own events. Half of the streams are for
        operators, so that others cannot lock them out.
        """
        limit = self._limit if caller.may_administer else self._limit // 2
        if self._is_closed or len(self._open) >= limit:
            problem = "stopping" if self._is_closed else f"{limit} streams are open already"
            raise Overloaded(f"{problem}; retry", retry_after=10)
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.add(end)
        try:
            response = StreamResponse(headers=_HEADERS)
            await response.prepare(caller.request)
            yield EventStream(response, end)
            await response.write_eof()
        except Exception:
            # No error document can follow what was sent; only the connection's end says it.
            if caller.request.transport is not None:
                caller.request.transport.abort()
            raise
        finally:
            self._open.discard(end)


class EventStream:
    """One open stream."""

    def __init__(self, response: StreamResponse, end: asyncio.Future[None]) -> None:
        self.response: Final = response
        self._end = end

    @property
    def has_ended(self) -> bool:
        """The server is stopping."""
        return self._end.done()

    async def send(self, text: bytes) -> None:
        """Send events, or a comment, at the pace of the client. Raises ``ConnectionError``."""
        await self.response.write(text)

    async def wait(self, work: Awaitable[Result], seconds: float | None = None) -> Result | None:
        """Return the result of ``work``; None after ``seconds``, or when the stream ends."""
        task = asyncio.ensure_future(work)
        ends: list[asyncio.Future[Any]] = [task, self._end]
        try:
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()


def event(kind: str, data: bytes, serial: int | None = None) -> bytes:
    """Return one event; ``data`` is one line."""
    number = b"" if serial is None else b"id: %d\n" % serial
    return b"%bevent: %b\ndata: %b\n\n" % (number, kind.encode(), data)


def comment(text: str) -> bytes:
    """Return a line that clients ignore; it keeps the connection open."""
    return b": %b\n\n" % text.encode()
