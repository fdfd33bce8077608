"""What looks after the cache under ``/-/``: images, pins, what is in use, eviction, verification.

Only for who is trusted: names tell, and most of it changes something. Streams are NDJSON.
"""

import asyncio
import hmac
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from aiohttp.web import BaseRequest, Response, StreamResponse

from proxy.cache.holdings import Holdings
from proxy.errors import Denied, NotKept, RequestInvalid, StorageError, Unauthorized, Unsupported
from proxy.images import images
from proxy.in_use import MAX_FILE, Feeds
from proxy.pins import Pin, Pins
from proxy.quantities import parse_size
from proxy.records import disk_bytes
from proxy.threads import in_thread
from proxy.verify import Verifier

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
_DEFAULT_LIFE: Final = 3600.0
_LONGEST_LIFE: Final = 7 * 86400.0
_FLUSH_LINES: Final = 100

Document = dict[str, Any]
Page = Callable[[BaseRequest], Awaitable[StreamResponse]]


class Token:
    """The secret that proves trust over TCP; None as file: nobody is trusted there."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    async def require(self, request: BaseRequest) -> None:
        """Raise ``Denied`` or ``Unauthorized`` unless the request carries the token."""
        file = self._file
        if file is None:
            raise Denied(
                "this needs the admin socket in the cache's directory, or a token: "
                "set admin.token_file"
            )
        try:
            token = (await in_thread(file.read_bytes)).strip()
        except OSError as error:
            raise Denied(f"the file of admin.token_file cannot be read: {error.strerror}") from None
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not token or not hmac.compare_digest(given, b"Bearer " + token):
            raise Unauthorized("this needs the admin token: Authorization: Bearer …")


WAIT_SECONDS: Final = 10.0
"""For so long a command waits until all that is held is known."""


class Control:
    """Answers for the trusted. Every page raises ``RegistryError`` for what is wrong."""

    def __init__(
        self, holdings: Holdings, pins: Pins, feeds: Feeds, verifier: Verifier, token: Token
    ) -> None:
        self._index = holdings.index
        self._evictor = holdings.evictor
        self.pins = pins
        self._feeds = feeds
        self._verifier = verifier
        self.token = token
        self._pages: dict[str, dict[str, Page]] = {
            "/-/images": {"GET": self._get_images},
            "/-/pins": {"GET": self._get_pins, "PUT": self._put_pin, "DELETE": self._delete_pin},
            "/-/in-use": {"GET": self._get_in_use, "PUT": self._put_in_use},
            "/-/evict": {"GET": self._get_evict, "POST": self._post_evict},
            "/-/verify": {"POST": self._post_verify},
        }

    def has(self, path: str) -> bool:
        """Tell whether a page is one of these."""
        return path in self._pages

    async def answer(self, request: BaseRequest) -> StreamResponse:
        """Answer a request whose sender is trusted. Raises ``RegistryError``."""
        pages = self._pages[request.path]
        page = pages.get(request.method)
        if page is None:
            problem = f"{request.method} {request.path}: there is no such thing to do"
            raise Unsupported(problem, allowed=pages)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._index.ready()
        except TimeoutError:
            reason = self._index.failure or "the index is still being read"
            raise NotKept(f"{reason}; try again later") from None
        return await page(request)

    async def _get_images(self, request: BaseRequest) -> StreamResponse:
        return await _stream(request, self._images(request.query.get("match")))

    async def _get_pins(self, _: BaseRequest) -> StreamResponse:
        pins = self.pins.all()
        total = sum(pin.bytes for pin in pins)
        limit = self.pins.limit()
        return _json({"pins": [_pin(pin) for pin in pins], "bytes": total, "limit_bytes": limit})

    async def _put_pin(self, request: BaseRequest) -> StreamResponse:
        try:
            return _json(_pin(await self.pins.add(_asked(request, "pin"))))
        except StorageError as error:
            raise NotKept(f"the pin cannot be kept: {error}") from error

    async def _delete_pin(self, request: BaseRequest) -> StreamResponse:
        name = _asked(request, "pin")
        try:
            await self.pins.remove(name)
        except StorageError as error:
            raise NotKept(f"the pin cannot be removed: {error}") from error
        return _json({"pin": name})

    async def _get_in_use(self, _: BaseRequest) -> StreamResponse:
        feeds = [
            {"source": feed.source, "images": feed.named, "expires_at": feed.expires_at}
            for feed in self._feeds.all()
        ]
        images = sorted({str(image) for image in self._feeds.images()})
        return _json({"feeds": feeds, "images": images})

    async def _put_in_use(self, request: BaseRequest) -> StreamResponse:
        text = await _body(request)
        source = request.query.get("source", "default")
        life = _number(request.query.get("ttl"), _DEFAULT_LIFE, _LONGEST_LIFE)
        told = await self._feeds.tell(source, text, life)
        return _json(
            {
                "source": source,
                "images": told.feed.named,
                "expires_at": told.feed.expires_at,
                "not_understood": told.not_understood,
            }
        )

    async def _get_evict(self, request: BaseRequest) -> StreamResponse:
        return await _stream(request, self._would_evict(_size(request)))

    async def _post_evict(self, request: BaseRequest) -> StreamResponse:
        blobs, freed = await self._evictor.evict(_size(request))
        return _json({"blobs": blobs, "bytes": freed})

    async def _post_verify(self, request: BaseRequest) -> StreamResponse:
        events = self._verifier.run(
            repair=_is_true(request, "repair"),
            rate=_bytes(request.query.get("rate", "0"), "rate"),
            restart=_is_true(request, "restart"),
        )
        return await _stream(request, events)

    async def _images(self, pattern: str | None) -> AsyncGenerator[Document]:
        pinned = self.pins.pinned()
        used = {str(image) for image in self._feeds.images()}
        for count, image in enumerate(images(self._index), 1):
            if count % _FLUSH_LINES == 0:
                await asyncio.sleep(0)
            if pattern is not None and not fnmatchcase(image.name, pattern):
                continue
            descriptor = image.record.descriptor
            by_digest = f"{image.target}@{descriptor.digest}"
            yield {
                "name": image.name,
                "digest": descriptor.digest,
                "media_type": descriptor.media_type,
                "state": image.weight.state.value,
                "held_bytes": image.weight.held_bytes,
                "missing": image.weight.missing,
                "last_used": image.used_at,
                "checked_at": image.record.checked_at or None,
                "pinned": descriptor.digest in pinned,
                "in_use": not used.isdisjoint({image.name, by_digest, descriptor.digest}),
            }

    async def _would_evict(self, wanted: int) -> AsyncGenerator[Document]:
        """Yield what an eviction of ``wanted`` disk bytes would take, and the sum."""
        victims, blobs, freed = [], 0, 0
        for record in await self._evictor.coldest():
            if freed >= wanted:
                break
            blobs, freed = blobs + 1, freed + disk_bytes(record.size)
            if blobs <= 10_000:
                victims.append(record)
        for record in victims:
            yield {
                "digest": record.digest,
                "size": record.size,
                "disk_bytes": disk_bytes(record.size),
                "media_type": record.media_type,
                "last_used": record.used_at,
            }
        yield {"blobs": blobs, "bytes": freed}


async def _stream(request: BaseRequest, documents: AsyncGenerator[Document]) -> StreamResponse:
    """Send documents, a line each; what fails before the first is raised."""
    async with aclosing(documents) as lines:
        first = await anext(lines, None)
        response = StreamResponse(headers={"Content-Type": NDJSON})
        with suppress(ConnectionError):  # whoever leaves ends it
            await response.prepare(request)
            if first is not None:
                await response.write(_line(first))
            await _send(response, lines)
            await response.write_eof()
    return response


async def _send(response: StreamResponse, documents: AsyncGenerator[Document]) -> None:
    """Send lines: events at once, others some at a time."""
    pending, count = b"", 0
    async for document in documents:
        pending += _line(document)
        count += 1
        if "event" in document or count % _FLUSH_LINES == 0:
            await response.write(pending)
            await asyncio.sleep(0)  # a write waits only for a client that is slow
            pending = b""
    await response.write(pending)


async def _body(request: BaseRequest) -> str:
    content = await request.content.read(MAX_FILE + 1)
    while len(content) <= MAX_FILE and (more := await request.content.read(MAX_FILE)):
        content += more
    if len(content) > MAX_FILE:
        raise RequestInvalid(f"at most {MAX_FILE} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise RequestInvalid("not UTF-8 text") from None


def _asked(request: BaseRequest, name: str) -> str:
    value = request.query.get(name)
    if not value:
        raise RequestInvalid(f"say which: ?{name}=…")
    return value


def _size(request: BaseRequest) -> int:
    return _bytes(_asked(request, "bytes"), "bytes")


def _bytes(text: str, name: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise RequestInvalid(f"{name}: {error}") from None


def _is_true(request: BaseRequest, name: str) -> bool:
    value = request.query.get(name, "false")
    if value not in ("true", "false"):
        raise RequestInvalid(f"{name} is true or false")
    return value == "true"


def _number(text: str | None, otherwise: float, most: float) -> float:
    try:
        number = otherwise if text is None else float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise RequestInvalid("ttl is a number of seconds")
    return min(max(1.0, number), most)


def _pin(pin: Pin) -> Document:
    return {
        "pin": pin.name,
        "source": "configured" if pin.is_configured else "added",
        "images": pin.images,
        "bytes": pin.bytes,
        "refused": pin.refused,
    }


def _line(document: Document) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _json(document: Document) -> Response:
    return Response(body=json.dumps(document).encode(), content_type=JSON)
