"""An answer as a value, and the one function that puts it on the wire as told, faults included."""

import asyncio
import fcntl
import json
import os
import re
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from aiohttp import web

from tests.fakes.records import Exchange

_PIECE = 64 * 1024
_TICKS_PER_SECOND = 50
_CATCH_UP = 0.1
"""Seconds that a slow body makes up for when its process was not running: no more, or all that is
left would come at once, and look like a fast connection."""

_DRAIN_WITHIN = 2.0
"""Seconds in which the peer takes what it was sent before a reset; it may also read nothing."""

_PREPARED = web.ResponseKey("wanted-headers", frozenset[str])


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an answer travels. Offsets are in bytes of the body as sent, `rate` in bytes/second."""

    delay: float = 0.0
    gates: tuple[asyncio.Event, ...] = ()
    rate: float | None = None
    stall_at: int | None = None
    release: asyncio.Event | None = None
    cut_at: int | None = None
    reset: bool = False
    refuse: bool = False
    chunked: bool = False
    excess: int = 0
    content_range: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is sent. `ranges`: a Range header may pick a part of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = False
    delivery: Delivery = Delivery()

    def with_header(self, name: str, value: str | None) -> "Reply":
        """The same with one header set, or without it if `value` is None."""
        kept = {key: held for key, held in self.headers.items() if key.lower() != name.lower()}
        return replace(self, headers=kept if value is None else kept | {name: value})


def error(status: int, code: str, message: str = "", **headers: str) -> Reply:
    """An error with the body the distribution spec gives it; `headers` with `_` for `-`."""
    body = {"errors": [{"code": code, "message": message or code.lower(), "detail": None}]}
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return json_reply(body, status, named)


def json_reply(
    document: Any,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """A JSON answer."""
    base = {"Content-Type": "application/json"}
    return Reply(status, json.dumps(document).encode(), base | dict(headers or {}))


async def deliver(request: web.Request, exchange: Exchange, reply: Reply) -> web.StreamResponse:
    """Send `reply` the way its delivery says, and note the progress in `exchange`."""
    try:
        return await _deliver(request, exchange, _ranged(request, reply))
    except (asyncio.CancelledError, ConnectionError):
        exchange.end("dropped")
        raise


async def keep_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Take back the Content-Type that the framework adds to an answer which has none."""
    wanted = response.get(_PREPARED)
    if wanted is not None and "content-type" not in wanted:
        response.headers.popall("Content-Type", None)


async def _deliver(request: web.Request, exchange: Exchange, reply: Reply) -> web.StreamResponse:
    how = reply.delivery
    await asyncio.sleep(how.delay)
    for gate in how.gates:
        await gate.wait()
    if how.refuse:
        exchange.end("cut")
        await _hang_up(request, reset=how.reset)
        return web.Response()
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response[_PREPARED] = frozenset(name.lower() for name in reply.headers)
    if how.chunked:
        if request.method != "HEAD":
            response.enable_chunked_encoding()
    elif reply.status != 304:
        response.content_length = len(reply.body) + how.excess
    await response.prepare(request)
    exchange.start(reply.status)
    if request.method != "HEAD":
        await _send(request, response, exchange, reply)
    exchange.end("whole")
    return response


async def _send(
    request: web.Request, response: web.StreamResponse, exchange: Exchange, reply: Reply
) -> None:
    """Write the body; whatever makes it differ from what was announced ends the connection."""
    how = reply.delivery
    due = time.monotonic()
    for start, stop in _spans(len(reply.body), how):
        if start == how.stall_at and how.release is not None:
            await how.release.wait()
        if start == how.cut_at:
            exchange.end("cut")
            return await _hang_up(request, reset=how.reset)
        await response.write(reply.body[start:stop])
        exchange.send(stop - start)
        if how.rate is not None:
            due = max(due, time.monotonic() - _CATCH_UP) + (stop - start) / how.rate
            await _sleep_until(due)
    if how.excess < 0 and request.transport is not None:
        request.transport.write(reply.body[how.excess :])
    if how.excess != 0:
        exchange.end("cut")
        await _hang_up(request, reset=False)
    return None


async def _sleep_until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def _spans(size: int, how: Delivery) -> Iterator[tuple[int, int]]:
    """Pieces of the body, split where something is to happen, and an empty one at the end."""
    step = _PIECE if how.rate is None else max(1, min(_PIECE, int(how.rate / _TICKS_PER_SECOND)))
    marks = {mark for mark in (how.stall_at, how.cut_at) if mark is not None and mark < size}
    edges = sorted({0, *range(0, size, step), *marks, size})
    yield from zip(edges, [*edges[1:], size], strict=True)


async def _hang_up(request: web.Request, *, reset: bool) -> None:
    """Close the connection: in order, or (`reset`) with a TCP RST once the peer has its bytes."""
    transport = request.transport
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    held = transport.get_extra_info("socket")
    end = time.monotonic() + _DRAIN_WITHIN
    while time.monotonic() < end and not _is_drained(transport, held.fileno()):
        await asyncio.sleep(0.002)
    for _ in range(10):  # turns of the loop, in which a peer of this process reads
        await asyncio.sleep(0.002)
    if transport.is_closing():
        return
    with socket.socket(fileno=os.dup(held.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _is_drained(transport: asyncio.BaseTransport, descriptor: int) -> bool:
    """Return True if the peer's kernel has all bytes: a reset drops those that are on their way."""
    if transport.is_closing():
        return True
    if cast("asyncio.WriteTransport", transport).get_write_buffer_size():
        return False
    waiting = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    return not int.from_bytes(waiting, sys.byteorder)


def _ranged(request: web.Request, reply: Reply) -> Reply:
    """The part a GET asked for by `Range` (RFC 9110 section 14), or 416, or all of it."""
    wanted = request.headers.get("Range")
    if request.method != "GET" or wanted is None or not reply.ranges or reply.status != 200:
        return reply
    condition = request.headers.get("If-Range")
    if condition is not None and condition != reply.headers.get("ETag"):
        return reply
    size = len(reply.body)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted.strip())
    if match is None or match.groups() == ("", ""):
        return reply
    first, last = _edges(match[1], match[2], size)
    if first > last or first >= size:
        refusal = error(416, "RANGE_INVALID", Content_Range=f"bytes */{size}")
        return replace(refusal, delivery=reply.delivery)
    part = replace(reply, status=206, body=reply.body[first : last + 1])
    lie = reply.delivery.content_range
    return part.with_header("Content-Range", lie or f"bytes {first}-{last}/{size}")


def _edges(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1
