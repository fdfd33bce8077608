"""One blob's body over as many answers as it takes, and over several connections when it is large.

Content networks and long links bound what one connection gives; several asked by ``Range`` for
pieces of one body give more. A registry that cannot do that costs one refused request, and the
first connection goes on alone.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

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
from proxy.upstream.client import Client, UpstreamRequest
from proxy.upstream.headers import content_range
from proxy.upstream.ranges import Pieces, Span, Spans
from proxy.upstream.slots import PreemptibleSlot, Slots
from proxy.upstream.transport import READ_BUFFER

RESUME_PAUSE: Final = 0.5
MAX_RESUME_PAUSE: Final = 10.0
FAST: Final = 100_000_000
"""Bytes a second. One connection that brings as much wants no help."""

_WINDOW: Final = 0.25
"""Seconds for which the first connection is waited for before it gets help."""

Sink = Callable[[int, bytes], Awaitable[None]]
"""Takes some bytes of a body and the offset at which they belong; returns when they are safe."""

log = structlog.get_logger(__name__)


class _BrokenForGoodError(Exception):
    """A body cannot be resumed."""


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """How a body is fetched: attempts without progress, and in which pieces."""

    resumes: int
    pieces: Pieces


class Connection:
    """One answer after the other to the same question; each brings some of the body.

    ``waited`` is for how many seconds in all it has been waited for their bytes.
    """

    def __init__(
        self, client: Client, question: UpstreamRequest, response: ClientResponse | None
    ) -> None:
        self._client = client
        self._question = question
        self._response = response
        self._position = 0
        self._end = float("inf")
        self._is_whole = False
        self.waited = 0.0
        self.size = None if response is None else response.content_length

    def leads_to(self, offset: int) -> bool:
        """Tell whether the byte at ``offset`` comes next, or later in a body asked for anew."""
        if self._response is None or offset >= self._end:
            return False
        return self._position == offset or (self._is_whole and self._position < offset)

    async def restart(self) -> None:
        """Ask for the whole body again, of which then only what is wanted is kept."""
        self.close()
        self._response = await self._client.send(self._question)
        self._position, self._end, self._is_whole = 0, float("inf"), True

    async def chunks(self, span: Span, resumes: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a span; what breaks off goes on from the last good byte.

        A fresh request means a fresh redirect and a fresh token where those have expired. Gives up
        after ``resumes`` attempts without a byte of progress.
        """
        fruitless = 0
        broken: UpstreamFailure | None = None
        while span.position < span.stop:
            begun_at = span.reached
            try:
                if broken is not None or not self.leads_to(span.reached):
                    await self._open(span, broken)
                await self._skip(span.reached - self._position)
                while span.reached < span.stop and (chunk := await self._next(span)):
                    yield chunk
                    span.position = span.reached
                if self.size is None:
                    span.stop = span.position
                elif span.position < span.stop:
                    raise UpstreamUnavailable(f"{self._client.name}: the body broke off")
            except _BrokenForGoodError as trouble:
                raise broken or trouble.__cause__ from None  # type: ignore[misc]
            except UpstreamFailure as error:
                broken = error
                fruitless = 0 if span.reached > begun_at else fruitless + 1
                if fruitless >= resumes:
                    raise

    async def _next(self, span: Span) -> bytes:
        """Return some bytes, nothing at the end of the answer."""
        assert self._response is not None
        most = int(min(READ_BUFFER, span.stop - span.reached))
        began = asyncio.get_running_loop().time()
        chunk = await self._client.transport.read(self._response, most)
        self.waited += asyncio.get_running_loop().time() - began
        self._position += len(chunk)
        span.reached += len(chunk)
        return chunk

    async def _open(self, span: Span, broken: UpstreamFailure | None) -> None:
        """Open what a span has left; a whole answer instead is read up to there.

        Raises ``_BrokenForGoodError`` when upstream has nothing more to give.
        """
        self.close()
        if broken is not None:
            ref = self._question.ref
            log.info("resuming", at=span.position, ref=ref, reason=broken.message)
        try:
            self._response = await self._client.send(asked_for(self._question, span, self.size))
        except (UpstreamUnavailable, UpstreamTimeout, TooManyRequests) as error:
            await asyncio.sleep(min(error.retry_after or RESUME_PAUSE, MAX_RESUME_PAUSE))
            raise
        except RegistryError as error:
            raise _BrokenForGoodError from error
        self._position, self._end = 0, float("inf")
        if self._response.status == 206:
            sent = content_range(self._response.headers.get("Content-Range", ""))
            self._position = -1 if sent is None else sent.start
            self._end = 0 if sent is None else sent.stop
        if not 0 <= self._position <= span.position:
            gone = UpstreamUnavailable(
                f"{self._client.name}: another range came than was asked for"
            )
            raise _BrokenForGoodError from gone

    async def join(self, span: Span, size: int) -> None:
        """Open a span beside other connections, by exactly its range and at the first attempt.

        Raises ``RegistryError`` when upstream does not want that, ``UpstreamRejected`` when its
        answer is something else.
        """
        self.close()
        self.size = size
        self._response = await self._client.send(
            replace(asked_for(self._question, span, None), is_optional=True)
        )
        sent = content_range(self._response.headers.get("Content-Range", ""))
        if (
            self._response.status != 206
            or sent is None
            or sent.start != span.position
            or sent.size not in (None, size)
        ):
            self.close()
            raise UpstreamRejected(f"{self._client.name}: gives no ranges")
        self._position, self._end = sent.start, sent.stop

    async def _skip(self, count: int) -> None:
        while count > 0:
            assert self._response is not None
            skipped = await self._client.transport.read(self._response, min(count, READ_BUFFER))
            if not skipped:
                raise UpstreamUnavailable(f"{self._client.name}: the body broke off again")
            self._position += len(skipped)
            count -= len(skipped)

    def close(self) -> None:
        """End the transfer; what has come to its end leaves a connection to be used again."""
        self._is_whole = False
        if self._response is not None:
            self._response.close()
            self._response = None


def asked_for(question: UpstreamRequest, span: Span, size: float | None) -> UpstreamRequest:
    """Return the question for a span of a body; the end is left open when it is the body's own."""
    end = "" if span.stop in (size, float("inf")) else int(span.stop) - 1
    headers = {**question.headers, "Range": f"bytes={span.position}-{end}"}
    return replace(question, headers=headers, is_optional=False)


class RangeWorker:
    """One more connection, as long as it is of use and nobody else wants its place."""

    def __init__(self, connection: Connection, span: Span, loan: PreemptibleSlot) -> None:
        self.connection = connection
        self.span: Span | None = span
        self.loan = loan


class Transfer:
    """One blob's body: ``size`` bytes if upstream announces it. Close it when done."""

    def __init__(
        self,
        client: Client,
        question: UpstreamRequest,
        response: ClientResponse,
        *,
        terms: DownloadPolicy,
        places: Slots,
    ) -> None:
        self._client = client
        self._question = question
        self._terms = terms
        self._places = places
        self._first = Connection(client, question, response)
        self.size = response.content_length
        self._spans = Spans(float("inf") if self.size is None else self.size, terms.pieces)
        self._helpers: dict[asyncio.Task[None], RangeWorker] = {}
        self._wanted = 2 if self._may_be_cut(response) else 1
        self._proven = False
        self._failure: RegistryError | None = None
        self._watched_since = 0.0
        self._watched_bytes = 0

    def _may_be_cut(self, response: ClientResponse) -> bool:
        """Tell whether more connections could help, as far as the first answer shows."""
        pieces, said = self._terms.pieces, response.headers.get("Accept-Ranges", "").lower()
        if self.size is None or self.size < pieces.start_from or pieces.connections < 2:
            return False
        return said == "bytes" or (said == "" and not self._client.transport.is_own(response))

    def chunks(self) -> AsyncIterator[bytes]:
        """Return the bytes in their order, over one connection."""
        span = Span(0, float("inf") if self.size is None else self.size)
        return self._first.chunks(span, self._terms.resumes)

    async def pour(self, sink: Sink) -> None:
        """Give ``sink`` every byte once, in any order, from several offsets at the same time.

        Raises what ended it: ``UpstreamFailure``, or what ``sink`` raises.
        """
        try:
            async with asyncio.TaskGroup() as group:
                await self._lead(group, sink)
                while self._helpers:
                    await asyncio.wait(self._helpers, return_when=asyncio.FIRST_COMPLETED)
                    await self._lead(group, sink)
                if not self._spans.is_done:
                    raise self._failure or UpstreamUnavailable("the body broke off")
        except BaseExceptionGroup as troubles:
            raise troubles.exceptions[0] from None

    def close(self) -> None:
        """End the transfer."""
        self._first.close()

    async def _lead(self, group: asyncio.TaskGroup, sink: Sink) -> None:
        """Fetch on the first connection what nobody else does; others may finish where it fails."""
        try:
            while self._failure is None and (span := self._spans.claim(self._hands)) is not None:
                try:
                    if not await self._turn_to(span):
                        return
                    async with aclosing(self._first.chunks(span, self._terms.resumes)) as chunks:
                        async for chunk in chunks:
                            await sink(span.position, chunk)
                            self._watch(len(chunk), group, sink)
                finally:
                    self._spans.give_back(span)
        except RegistryError as error:
            if not self._helpers:
                raise
            self._failure = error

    async def _turn_to(self, span: Span) -> bool:
        """Let the first connection go on where nobody is; False when others had better do that.

        When the last of them has gone because there are no ranges any more, all is asked for anew:
        what comes twice costs less than a pull that fails.
        """
        if self._first.leads_to(span.reached):
            return True
        assert self.size is not None
        for _ in range(1 + self._terms.resumes):
            try:
                await self._first.join(span, self.size)
            except RegistryError as error:
                self._wanted = 1
                log.info("the first connection stays behind", reason=error.message)
                if self._helpers:
                    return False
                if not isinstance(error, UpstreamUnavailable | UpstreamTimeout):
                    break
                await asyncio.sleep(RESUME_PAUSE)
            else:
                return True
        await self._first.restart()
        return True

    @property
    def _hands(self) -> int:
        return 1 + len(self._helpers)

    def _watch(self, count: int, group: asyncio.TaskGroup, sink: Sink) -> None:
        """Get help when the first connection is waited for; a slow disk is no reason."""
        if self._wanted <= self._hands:
            return
        self._watched_bytes += count
        seconds = self._first.waited - self._watched_since
        if seconds < _WINDOW and self._watched_bytes < self._terms.pieces.smallest:
            return
        if self._watched_bytes < FAST * seconds:
            self._hire(group, sink)
        self._watched_since, self._watched_bytes = self._first.waited, 0

    def _hire(self, group: asyncio.TaskGroup, sink: Sink) -> None:
        """Let more connections help, as far as there are places that nobody else wants."""
        while self._hands < self._wanted:
            tasks: list[asyncio.Task[None]] = []
            loan = self._places.borrow(lambda tasks=tasks: tasks[0].cancel())  # type: ignore[misc]
            if loan is None:
                return
            span = self._spans.claim(self._hands + 1)
            if span is None:
                loan.give_back()
                return
            helper = RangeWorker(Connection(self._client, self._question, None), span, loan)
            task = group.create_task(self._help(helper, group, sink), name="download helper")
            tasks.append(task)
            self._helpers[task] = helper
            task.add_done_callback(self._dismiss)

    async def _help(self, helper: RangeWorker, group: asyncio.TaskGroup, sink: Sink) -> None:
        """Fetch span after span; whatever upstream has against it leaves the rest to the others."""
        assert self.size is not None
        try:
            while helper.span is not None:
                await self._fetch(helper, group, sink)
                self._spans.give_back(helper.span)
                helper.span = None
                helper.span = self._spans.claim(self._hands)
        except RegistryError as error:
            self._wanted = self._hands - 1
            log.info("fewer connections", ref=self._question.ref, reason=error.message)

    async def _fetch(self, helper: RangeWorker, group: asyncio.TaskGroup, sink: Sink) -> None:
        """Fetch one span; a body that breaks off is asked for again from its last good byte."""
        span, connection = helper.span, helper.connection
        assert span is not None
        assert self.size is not None
        fruitless = 0
        while span.position < span.stop:
            begun_at = span.reached
            await connection.join(span, self.size)
            if not self._proven:
                self._proven = True
                self._wanted = self._terms.pieces.connections
                self._hire(group, sink)
            try:
                async with aclosing(connection.chunks(span, 0)) as chunks:
                    async for chunk in chunks:
                        await sink(span.position, chunk)
            except UpstreamFailure:
                fruitless = 0 if span.reached > begun_at else fruitless + 1
                if fruitless >= self._terms.resumes:
                    raise

    def _dismiss(self, task: asyncio.Task[None]) -> None:
        helper = self._helpers.pop(task)
        helper.connection.close()
        helper.loan.give_back()
        if helper.span is not None:
            self._spans.give_back(helper.span)
