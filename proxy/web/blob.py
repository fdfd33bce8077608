"""Sends one blob or ranges of it, from memory, a file or a download.

An error after the headers closes the connection: clients would treat an error document after a body
as its end.
"""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Protocol, assert_never

import structlog
from aiohttp import HttpVersion11
from aiohttp.web import StreamResponse

from proxy.core.errors import RegistryError, StorageError, UpstreamUnavailable
from proxy.core.names import Digest, Target
from proxy.repository.results import Blob, LiveBlob, LocalBlob, PassThroughBlob, SmallBlob
from proxy.web.exchange import Exchange
from proxy.web.ranges import ByteRange, requested
from proxy.web.sendfile import ClientLeftError, Sending

OCTETS: Final = "application/octet-stream"

log = structlog.get_logger(__name__)


def blob_headers(digest: Digest) -> dict[str, str]:
    """Return the headers of every answer about a blob (distribution-spec "Pulling blobs")."""
    return {
        "Content-Type": OCTETS,
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
    }


class Remainder(Protocol):
    """Provides the rest of a blob when the disk fails in the middle of it."""

    def rest(
        self, target: Target, digest: Digest, failed: LocalBlob | LiveBlob, sent: range
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes after those that were ``sent``. Raises ``RegistryError``."""


async def send_blob(
    exchange: Exchange, digest: Digest, blob: Blob, blobs: Remainder
) -> StreamResponse:
    """Send a blob and return the response. ``blobs`` provides the rest when the disk fails.

    Raises ``RegistryError`` or ``StorageError`` before anything is sent.
    """
    exchange.outcome, exchange.place = blob.outcome, blob.place
    await _prove_what_has_no_last_byte(exchange, blob)
    parts = _Parts(_byte_ranges(exchange, digest, blob), blob.size)
    response = _response(exchange, digest, parts)
    sending = Sending(exchange.request, response, exchange.client)
    try:
        await sending.begin()
        exchange.begin_body()
        await _Body(exchange, sending, blobs, digest).send(blob, parts)
        await sending.finish()
    except ClientLeftError:
        exchange.left = True
        _hang_up(exchange)
    except Exception as error:
        exchange.fail(error if isinstance(error, RegistryError) else RegistryError(str(error)))
        unforeseen = not isinstance(error, RegistryError | StorageError)
        log.warning(
            "a response broke off",
            target=str(exchange.target),
            digest=digest,
            error=str(error),
            exc_info=unforeseen,
        )
        _hang_up(exchange)
    finally:
        exchange.sent = sending.sent
    return response


async def _prove_what_has_no_last_byte(exchange: Exchange, blob: Blob) -> None:
    """Wait for the proof of a body whose end cannot be held back.

    An empty body has no last byte. To HTTP/1.0 a body without length ends with the connection, so
    that a broken one looks complete.
    """
    old = exchange.request.version < HttpVersion11
    match blob:
        case LiveBlob(reader):
            if blob.size == 0 or (blob.size is None and old):
                await reader.download.proven()
        case PassThroughBlob():
            if blob.size is None and old:
                raise UpstreamUnavailable("a blob of unknown length needs HTTP/1.1")
            if blob.size == 0:
                async for _ in blob.chunks:
                    pass
        case LocalBlob() | SmallBlob():
            pass
        case _:
            assert_never(blob)


class _Parts:
    """The parts of a body: none means the whole, several are ``multipart/byteranges``."""

    def __init__(self, byte_ranges: list[ByteRange], size: int | None) -> None:
        self.byte_ranges = byte_ranges
        self.size = size
        self.boundary = secrets.token_hex(16)

    @property
    def is_multiple(self) -> bool:
        return len(self.byte_ranges) > 1

    @property
    def end(self) -> bytes:
        return f"\r\n--{self.boundary}--\r\n".encode()

    def head(self, byte_range: ByteRange) -> bytes:
        """Return the header of one part (RFC 9110 §14.6)."""
        return (
            f"\r\n--{self.boundary}\r\nContent-Type: {OCTETS}\r\n"
            f"Content-Range: {self.content_range(byte_range)}\r\n\r\n"
        ).encode()

    def content_range(self, byte_range: ByteRange) -> str:
        return f"bytes {byte_range.start}-{byte_range.stop - 1}/{self.size}"

    def length(self) -> int | None:
        """Return the length of the body in bytes."""
        if not self.byte_ranges:
            return self.size
        length = sum(byte_range.stop - byte_range.start for byte_range in self.byte_ranges)
        if self.is_multiple:
            length += sum(len(self.head(byte_range)) for byte_range in self.byte_ranges) + len(
                self.end
            )
        return length


class _Body:
    """Sends the body of one response."""

    def __init__(
        self, exchange: Exchange, sending: Sending, blobs: Remainder, digest: Digest
    ) -> None:
        assert exchange.target is not None
        self._target = exchange.target
        self._sending = sending
        self._blobs = blobs
        self._digest = digest

    async def send(self, blob: Blob, parts: _Parts) -> None:
        """Send the whole, or its parts."""
        if isinstance(blob, PassThroughBlob):
            await self._sending.chunks(blob.chunks)
            return
        whole = [] if parts.byte_ranges else [ByteRange(0, parts.size or 0)]
        for byte_range in whole or parts.byte_ranges:
            if parts.is_multiple:
                await self._sending.write(parts.head(byte_range))
            if isinstance(blob, SmallBlob):
                await self._sending.write(memoryview(blob.body)[byte_range.start : byte_range.stop])
            else:
                await self._send_span(
                    blob, byte_range.start, parts.size if whole else byte_range.stop
                )
        if parts.is_multiple:
            await self._sending.write(parts.end)

    async def _send_span(self, blob: LocalBlob | LiveBlob, start: int, stop: int | None) -> None:
        before = self._sending.sent
        try:
            await self._sending.file(
                blob.reader if isinstance(blob, LiveBlob) else blob, start, stop
            )
        except StorageError as error:
            log.warning("passing the rest through", error=str(error))
            sent = range(start, start + self._sending.sent - before)
            async with aclosing(self._blobs.rest(self._target, self._digest, blob, sent)) as chunks:
                await self._sending.chunks(_until(chunks, stop, sent.stop))


async def _until(
    chunks: AsyncIterator[bytes], stop: int | None, offset: int
) -> AsyncIterator[bytes]:
    """Yield the bytes before ``stop``; the others are read too, for the proof."""
    async for chunk in chunks:
        wanted = chunk if stop is None else chunk[: max(0, stop - offset)]
        offset += len(chunk)
        yield wanted


def _byte_ranges(exchange: Exchange, digest: Digest, blob: Blob) -> list[ByteRange]:
    """Return the ranges to send, none for the whole; a body passed through is proven only whole."""
    size = blob.size
    headers = exchange.request.headers
    condition = headers.get("If-Range")
    if size is None or isinstance(blob, PassThroughBlob) or condition not in (None, f'"{digest}"'):
        return []
    return requested(headers.get("Range"), size)


def _response(exchange: Exchange, digest: Digest, parts: _Parts) -> StreamResponse:
    headers = blob_headers(digest)
    if parts.is_multiple:
        headers["Content-Type"] = f"multipart/byteranges; boundary={parts.boundary}"
    elif parts.byte_ranges:
        headers["Content-Range"] = parts.content_range(parts.byte_ranges[0])
    if parts.byte_ranges:
        exchange.status = 206
    response = StreamResponse(status=exchange.status, headers=exchange.headers(headers))
    length = parts.length()
    if length is None:
        response.enable_chunked_encoding()
    else:
        response.content_length = length
    return response


def _hang_up(exchange: Exchange) -> None:
    if exchange.request.transport is not None:
        exchange.request.transport.close()
