"""One connection that fetches parts of one blob, and resumes where an answer breaks off."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final, Self

import structlog
from aiohttp import ClientResponse

from proxy.core.errors import (
    RegistryError,
    TooManyRequests,
    UpstreamFailure,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.core.sources import Piece
from proxy.upstream.bandwidth import Share
from proxy.upstream.client import Client, UpstreamRequest
from proxy.upstream.direct import READ_BUFFER
from proxy.upstream.headers import content_range
from proxy.upstream.ranges import ByteRange

RESUME_PAUSE: Final = 0.5
MAX_RESUME_PAUSE: Final = 10.0

log = structlog.get_logger(__name__)


class _BrokenForGoodError(Exception):
    """A body cannot be resumed."""


class Connection:
    """Answers to one request, one after the other; each has a part of the body.

    ``size`` is that of the whole body, None if no answer announced it. ``waited`` is the total time
    of waiting for bytes in seconds. ``share`` limits the bandwidth, None means no limit.
    """

    def __init__(
        self,
        client: Client,
        request: UpstreamRequest,
        share: Share | None,
        response: ClientResponse | None = None,
    ) -> None:
        self.share: Final = share
        self.size: int | None = None
        self.waited = 0.0
        self._client = client
        self._request = request
        self._response: ClientResponse | None = None
        self._position = 0  # of the answer's next byte
        self._end = float("inf")  # of the answer; behind it another one is needed
        self._is_whole = False
        if response is not None:
            self._accept(response)
            self.size = self._announced(response)

    @classmethod
    async def opened(
        cls, client: Client, request: UpstreamRequest, share: Share | None, offset: int
    ) -> Self:
        """Return a connection whose answer begins at or before the byte at ``offset``.

        Raises as ``Client.ask`` does, and ``UpstreamRejected`` for another range.
        """
        if offset == 0:
            return cls(client, request, share, await client.send(request))
        ranged = replace(
            _ranged(request, ByteRange(offset, float("inf"))), is_optional=request.is_optional
        )
        connection = cls(client, request, share, await client.send(ranged))
        connection._is_whole = connection._position == 0
        if not connection.leads_to(offset):
            connection.close()
            raise UpstreamRejected(f"{client.name}: the answer has another range than requested")
        return connection

    @property
    def may_split(self) -> bool:
        """The open answer does not exclude parallel ranges."""
        if self._response is None:
            return False
        accepted = self._response.headers.get("Accept-Ranges", "").lower()
        is_redirected = not self._client.transport.is_own(self._response)
        return accepted == "bytes" or (accepted == "" and is_redirected)

    def leads_to(self, offset: int) -> bool:
        """Return True if the open answer has the byte at ``offset`` next.

        Also True if it is a whole body that was requested again, and has that byte later.
        """
        if self._response is None or offset >= self._end:
            return False
        return self._position == offset or (self._is_whole and self._position < offset)

    async def restart(self) -> None:
        """Request the whole body again; ``pieces`` skips unwanted bytes."""
        self.close()
        self._accept(await self._client.send(self._request))
        self._is_whole = True

    async def pieces(self, byte_range: ByteRange, resumes: int) -> AsyncGenerator[Piece, None]:
        """Yield the bytes of a span. An answer that breaks off is resumed from the last good byte.

        A fresh request means a fresh redirect and a fresh token where those have expired. Raises
        ``UpstreamFailure`` after ``resumes`` attempts without a byte of progress.
        """
        fruitless = 0
        broken: UpstreamFailure | None = None
        while byte_range.position < byte_range.stop:
            begun_at = byte_range.position
            try:
                if broken is not None or not self.leads_to(byte_range.position):
                    await self._open(byte_range, broken)
                await self._skip(byte_range.position - self._position)
                while byte_range.position < byte_range.stop and (
                    data := await self._read(byte_range.stop - byte_range.position)
                ):
                    piece = Piece(byte_range.position, data)
                    byte_range.position += len(data)
                    yield piece
                if self.size is None:
                    byte_range.stop = byte_range.position
                elif byte_range.position < byte_range.stop:
                    raise UpstreamUnavailable(f"{self._client.name}: the body broke off")
            except _BrokenForGoodError as trouble:
                raise broken or trouble.__cause__ from None  # type: ignore[misc]
            except UpstreamFailure as error:
                broken = error
                fruitless = 0 if byte_range.position > begun_at else fruitless + 1
                if fruitless >= resumes:
                    raise

    async def join(self, byte_range: ByteRange, size: int) -> None:
        """Open a span beside other connections, by exactly its range and at the first attempt.

        Raises ``RegistryError`` when upstream refuses, ``UpstreamRejected`` when its answer is
        not that range.
        """
        self.close()
        self.size = size
        response = await self._client.send(
            replace(_ranged(self._request, byte_range), is_optional=True)
        )
        sent = content_range(response.headers.get("Content-Range", ""))
        if (
            response.status != 206
            or sent is None
            or sent.start != byte_range.position
            or sent.size not in (None, size)
        ):
            response.close()
            raise UpstreamRejected(f"{self._client.name}: ranges are not supported")
        self._accept(response)

    def close(self) -> None:
        """End the transfer; after a complete answer the connection can be reused."""
        self._is_whole = False
        if self._response is not None:
            self._response.close()
            self._response = None

    def _accept(self, response: ClientResponse) -> None:
        """Read from a new answer. Position -1: it is a range that cannot be used."""
        self._response = response
        self._position, self._end = 0, float("inf")
        if response.status == 206:
            sent = content_range(response.headers.get("Content-Range", ""))
            self._position = -1 if sent is None else sent.start
            self._end = 0 if sent is None else sent.stop

    @staticmethod
    def _announced(response: ClientResponse) -> int | None:
        """Return the size in bytes of the whole body, None if it is not announced."""
        if response.status != 206:
            return response.content_length
        sent = content_range(response.headers.get("Content-Range", ""))
        return None if sent is None else sent.size

    async def _read(self, most: float) -> bytes | memoryview:
        """Return 1 to ``most`` bytes, none at the end of the answer."""
        assert self._response is not None
        clock = asyncio.get_running_loop().time
        began = clock()
        piece = READ_BUFFER if self.share is None else self.share.piece
        data = await self._client.transport.read(self._response, int(min(piece, most)))
        self.waited += clock() - began
        self._position += len(data)
        if self.share is not None:
            await self.share.throttle(len(data))
        return data

    async def _open(self, byte_range: ByteRange, broken: UpstreamFailure | None) -> None:
        """Open the rest of a span. An answer with the whole body is skipped up to there.

        Raises ``_BrokenForGoodError`` when upstream has no more bytes.
        """
        self.close()
        if broken is not None:
            ref = self._request.ref
            log.info("resuming", at=byte_range.position, ref=ref, reason=broken.message)
        to_the_end = byte_range.stop == self.size
        wanted = ByteRange(byte_range.position, float("inf")) if to_the_end else byte_range
        try:
            self._accept(await self._client.send(_ranged(self._request, wanted)))
        except (UpstreamUnavailable, UpstreamTimeout, TooManyRequests) as error:
            await asyncio.sleep(min(error.retry_after or RESUME_PAUSE, MAX_RESUME_PAUSE))
            raise
        except RegistryError as error:
            raise _BrokenForGoodError from error
        if not 0 <= self._position <= byte_range.position:
            gone = UpstreamUnavailable(
                f"{self._client.name}: the answer has another range than requested"
            )
            raise _BrokenForGoodError from gone

    async def _skip(self, count: int) -> None:
        while count > 0:
            skipped = await self._read(count)
            if not skipped:
                raise UpstreamUnavailable(f"{self._client.name}: the body broke off again")
            count -= len(skipped)


def _ranged(request: UpstreamRequest, byte_range: ByteRange) -> UpstreamRequest:
    """Return the request for a span; the range is open-ended if the span is."""
    end = "" if byte_range.stop == float("inf") else int(byte_range.stop) - 1
    headers = {**request.headers, "Range": f"bytes={byte_range.position}-{end}"}
    return replace(request, headers=headers, is_optional=False)
