"""Responses under ``/-/``: JSON documents, streams with one document per line; query parameters."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

import structlog
from aiohttp.web import BaseRequest, Response, StreamResponse

from proxy.core.errors import RegistryError, RequestInvalid, StorageError, StorageUnavailable
from proxy.web.pacing import PacedResponse

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
FLUSH_LINES: Final = 100

log = structlog.get_logger(__name__)
Document = dict[str, Any]
Page = Callable[[BaseRequest], Awaitable[StreamResponse]]


async def stream(request: BaseRequest, documents: AsyncGenerator[Document]) -> StreamResponse:
    """Send documents, a line each. A failure before the first one is raised."""
    async with aclosing(documents) as lines:
        first = await anext(lines, None)
        response = StreamResponse(headers={"Content-Type": NDJSON})
        with suppress(ConnectionError):  # a client that leaves ends the stream
            await response.prepare(request)
            if first is not None:
                await response.write(_line(first))
            try:
                await _send(response, lines)
            except (RegistryError, StorageError):
                # No error document can follow what was sent; only the connection's end says it.
                if request.transport is not None:
                    request.transport.abort()
                raise
            await response.write_eof()
    return response


async def _send(response: StreamResponse, documents: AsyncGenerator[Document]) -> None:
    """Send lines: events at once, other documents in batches."""
    pending, count = b"", 0
    async for document in documents:
        pending += _line(document)
        count += 1
        if "event" in document or count % FLUSH_LINES == 0:
            await response.write(pending)
            await asyncio.sleep(0)  # a write waits only for a client that is slow
            pending = b""
    await response.write(pending)


def refusal(error: RegistryError) -> Response:
    """Return the response for an error."""
    return PacedResponse(
        status=error.status, body=error.body(), headers=error.headers(), content_type=JSON
    )


def unavailable(request: BaseRequest, error: StorageError) -> StorageUnavailable:
    """Log why the disk failed; return the error for the client, without it."""
    log.warning("storage failed", path=request.path, error=str(error))
    return StorageUnavailable("the cache's directory cannot be read or written")


def required(request: BaseRequest, name: str) -> str:
    """Return a required parameter. Raises ``RequestInvalid``."""
    value = request.query.get(name)
    if not value:
        raise RequestInvalid(f"a parameter is missing: ?{name}=…")
    return value


async def read_body(request: BaseRequest, limit: int) -> bytes:
    """Return the body of a request. Raises ``RequestInvalid`` above ``limit`` bytes."""
    body = bytearray()
    while piece := await request.content.readany():
        body += piece
        if len(body) > limit:
            raise RequestInvalid(f"at most {limit} bytes")
    return bytes(body)


def is_true(request: BaseRequest, name: str) -> bool:
    """Return an optional parameter that is ``true`` or ``false`` (the default)."""
    value = request.query.get(name, "false")
    if value not in ("true", "false"):
        raise RequestInvalid(f"{name} is true or false")
    return value == "true"


def _line(document: Document) -> bytes:
    return json.dumps(document).encode() + b"\n"


def reply(document: Document, status: int = 200) -> Response:
    """Return a response that is one document."""
    body = json.dumps(document).encode()
    return PacedResponse(status=status, body=body, content_type=JSON)
