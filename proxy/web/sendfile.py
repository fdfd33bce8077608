"""Sends bytes to sockets: by ``sendfile`` from files without TLS, else by reading and writing.

uvloop has no ``loop.sendfile`` and refuses watchers on a transport's own descriptor, but permits
them on a duplicate. A response that cannot be finished ends with a closed connection, never with a
body that looks complete.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from aiohttp.web import BaseRequest, StreamResponse

from proxy.core.errors import StorageError, is_disk_error
from proxy.runtime import page_cache
from proxy.runtime.executors import Pool, in_thread
from proxy.web.pacing import Pace

CHUNK: Final = 128 * 1024
"""Size of one write, and of the buffered data, which takes four times as much memory under TLS."""

SENDFILE_BYTES: Final = 1024 * 1024
_HEADER_POLL: Final = 0.002
_NO_SENDFILE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class Sendable(Protocol):
    """Bytes that can be sent, complete or still growing; ``fd`` is set only if they are a file."""

    @property
    def fd(self) -> int | None:
        """The file's descriptor."""

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``. Blocks. Raises ``StorageError``."""

    async def readable(self, offset: int) -> int:
        """Return the end of the bytes that can be read from ``offset`` on; ``offset`` at the end.

        Waits for more.
        """


class ClientLeftError(Exception):
    """The client closed the connection before the end of the response."""


class Sending:
    """One response in progress; ``sent`` counts body bytes. ``pace`` None: without a limit."""

    def __init__(
        self, request: BaseRequest, response: StreamResponse, pace: Pace | None = None
    ) -> None:
        self._request = request
        self._response = response
        self._pace = pace
        self.sent = 0

    async def file(self, source: Sendable, start: int, stop: int | None) -> None:
        """Send bytes ``start`` to ``stop`` (None: the end) of a blob that may still grow.

        Raises ``ClientLeftError``, ``StorageError``, or what ``readable`` raises.
        """
        transport = self._request.transport
        if transport is None:
            raise ClientLeftError
        is_plain = transport.get_extra_info("sslcontext") is None
        if is_plain and self._response.content_length and source.fd is not None:
            await self._by_sendfile(transport, source, start, stop)
        else:
            transport.set_write_buffer_limits(high=CHUNK)
            await self._by_write(source, start, stop)

    async def chunks(self, chunks: AsyncIterator[bytes]) -> None:
        """Send a body as it comes. Raises ``ClientLeftError``, or what ``chunks`` raises."""
        async for chunk in chunks:
            await self.write(chunk)

    async def _by_write(self, source: Sendable, start: int, stop: int | None) -> None:
        offset = start
        while stop is None or offset < stop:
            end = await source.readable(offset)
            if end <= offset:
                break
            known = end if stop is None else min(end, stop)
            with _reading():
                chunk = await _read(source, offset, min(known, offset + CHUNK), known)
            if not chunk:
                raise StorageError("the file shrank while it was sent")
            await self.write(chunk)
            offset += len(chunk)
            await asyncio.sleep(0)  # a write waits only when the kernel takes no more

    async def _by_sendfile(
        self,
        transport: asyncio.Transport,
        source: Sendable,
        start: int,
        stop: int | None,
    ) -> None:
        assert source.fd is not None
        while transport.get_write_buffer_size():  # the header block must leave first
            await asyncio.sleep(_HEADER_POLL)
            if transport.is_closing():
                raise ClientLeftError
        if transport.is_closing():
            raise ClientLeftError
        try:
            socket = os.dup(transport.get_extra_info("socket").fileno())  # the loop's is not ours
        except OSError:  # too many are open
            await self._by_write(source, start, stop)
            return
        before = self.sent
        try:
            offset = start
            while stop is None or offset < stop:
                end = await source.readable(offset)
                if end <= offset:
                    break
                end = end if stop is None else min(end, stop)
                offset = await self._stretch(socket, source.fd, offset, end)
        except _SendfileUnsupportedError:
            await self._by_write(source, start + self.sent - before, stop)
        finally:
            os.close(socket)

    async def _stretch(self, socket: int, fd: int, offset: int, end: int) -> int:
        """Send bytes that are readable, letting the loop turn between calls; return the new end."""
        cached_until = offset
        while offset < end:
            if offset >= cached_until:
                cached_until = offset + await self._turn(min(end - offset, SENDFILE_BYTES))
                with _reading():
                    await page_cache.load(fd, offset, cached_until, end)
            try:
                sent = os.sendfile(socket, fd, offset, cached_until - offset)
            except BlockingIOError:
                self._refund(cached_until - offset)
                cached_until = offset  # evicted meanwhile if the client is slow
                await _writable(socket)
                continue
            except OSError as error:
                raise _failed_sendfile(error) from error
            if sent == 0:
                raise StorageError("the file shrank while it was sent")
            offset += sent
            self.sent += sent
            await asyncio.sleep(0)
        return offset

    async def begin(self) -> None:
        """Send the headers. Raises ``ClientLeftError``."""
        with _sending():
            await self._response.prepare(self._request)

    async def write(self, chunk: bytes | memoryview) -> None:
        """Send some bytes, at the client's pace. Raises ``ClientLeftError``."""
        rest = memoryview(chunk)
        while rest:
            size = await self._turn(min(CHUNK, len(rest)))
            piece, rest = rest[:size], rest[size:]
            with _sending():
                await self._response.write(piece)
            self.sent += len(piece)

    async def finish(self) -> None:
        """End the body. Raises ``ClientLeftError``."""
        with _sending():
            await self._response.write_eof()

    async def _turn(self, most: int) -> int:
        """Return how many bytes may be sent now."""
        return most if self._pace is None else await self._pace.acquire(most)

    def _refund(self, size: int) -> None:
        """Give back bytes of a turn, so that a slow reader holds up no other one of its client."""
        if self._pace is not None:
            self._pace.refund(size)


@contextmanager
def _sending() -> Iterator[None]:
    """Raise ``ClientLeftError`` if the connection is lost."""
    try:
        yield
    except ConnectionError as error:
        raise ClientLeftError from error


class _SendfileUnsupportedError(Exception):
    """The file system has no ``sendfile``."""


async def _read(source: Sendable, start: int, stop: int, end: int) -> bytes:
    """Return bytes of a blob, without blocking the loop; those up to ``end`` are wanted next."""
    if source.fd is None:
        return await in_thread(lambda: source.read(start, stop), Pool.STREAM)
    await page_cache.load(source.fd, start, stop, end)
    return source.read(start, stop)


@contextmanager
def _reading() -> Iterator[None]:
    """Raise ``StorageError`` for an error of the disk; other errors do not count against a file."""
    try:
        yield
    except OSError as error:
        if is_disk_error(error):
            raise StorageError(f"sending a blob: {error}") from error
        raise


def _failed_sendfile(error: OSError) -> Exception:
    """Return the error for a failed ``sendfile``, which is due to the file or to the socket.

    Any error that disks do not report is due to the socket: the list of errors of networks is open
    (ETIMEDOUT, EHOSTUNREACH, ENOBUFS, ...), and must not count against a healthy blob.
    """
    if is_disk_error(error):
        return StorageError(f"sending a blob: {error}")
    if error.errno in _NO_SENDFILE:
        return _SendfileUnsupportedError()
    return ClientLeftError()


async def _writable(socket: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(socket, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(socket)
