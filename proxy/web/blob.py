"""Sends one blob, whole or a range of it, in whichever way it comes from the cache.

What breaks after the headers have gone ends with a closed connection: an error document behind a
body would be taken for its end.
"""

from typing import Final, assert_never

import structlog
from aiohttp.web import StreamResponse

from proxy.cache.answers import Blob, Live, Local, Through
from proxy.errors import RegistryError, StorageError
from proxy.names import Digest
from proxy.web.exchange import Exchange
from proxy.web.ranges import Span, requested
from proxy.web.send import ClientLeftError, Sending

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


async def send_blob(exchange: Exchange, digest: Digest, blob: Blob) -> StreamResponse:
    """Send a blob and return the response. Raises ``RangeInvalid`` before anything is sent."""
    exchange.outcome = blob.outcome
    span = _span(exchange, digest, blob)
    response = _response(exchange, digest, blob, span)
    sending = Sending(exchange.request, response)
    try:
        await _send(sending, blob, span)
    except ClientLeftError:
        exchange.left = True
        _hang_up(exchange)
    except (RegistryError, StorageError, EOFError) as error:
        exchange.fail(error if isinstance(error, RegistryError) else RegistryError(str(error)))
        log.warning(
            "a response broke off", target=str(exchange.target), digest=digest, error=str(error)
        )
        _hang_up(exchange)
    finally:
        exchange.sent = sending.sent
    return response


async def _send(sending: Sending, blob: Blob, span: Span | None) -> None:
    start, stop = (0, _size(blob)) if span is None else span
    match blob:
        case Local(file):

            async def complete(_: int) -> int:
                return file.size

            await sending.file(file.fd, start, stop, complete)
        case Live(reader):
            await sending.file(reader.flight.fd, start, stop, reader.flight.readable)
        case Through():
            await sending.chunks(blob.chunks)
        case _:
            assert_never(blob)


def _size(blob: Blob) -> int | None:
    match blob:
        case Local(file):
            return file.size
        case Live(reader):
            return reader.flight.size
        case Through():
            return blob.size
        case _:
            assert_never(blob)


def _span(exchange: Exchange, digest: Digest, blob: Blob) -> Span | None:
    """Return the range to send, None for the whole; what passes through is proven only whole."""
    size = _size(blob)
    headers = exchange.request.headers
    condition = headers.get("If-Range")
    if size is None or isinstance(blob, Through) or condition not in (None, f'"{digest}"'):
        return None
    return requested(headers.get("Range"), size)


def _response(exchange: Exchange, digest: Digest, blob: Blob, span: Span | None) -> StreamResponse:
    headers = blob_headers(digest)
    size = _size(blob)
    if span is not None:
        exchange.status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        size = span.stop - span.start
    response = StreamResponse(status=exchange.status, headers=exchange.headers(headers))
    if size is None:
        response.enable_chunked_encoding()
    else:
        response.content_length = size
    return response


def _hang_up(exchange: Exchange) -> None:
    if exchange.request.transport is not None:
        exchange.request.transport.close()
