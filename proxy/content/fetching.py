"""One body from several sources: the first that has the blob, then the next one from there on."""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self

import structlog

from proxy.content.intervals import Intervals
from proxy.core.errors import BlobUnknown, RegistryError, UpstreamFailure, UpstreamUnavailable
from proxy.core.names import Digest, Target
from proxy.core.sources import Body, Piece, Place, Priority, Source

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fetch:
    """A blob to fetch, and its sources in the order in which they are asked.

    ``size`` in bytes is from manifests of the repository, for a source that announces none.
    ``confirm`` asks whether the repository holds the blob, for a source that does not know; it
    raises ``NotFound`` or ``UpstreamFailure``.
    """

    target: Target
    digest: Digest
    sources: Sequence[Source]
    size: int | None = None
    priority: Priority = Priority.DOWNLOAD
    confirm: Callable[[], Awaitable[object]] | None = None

    async def allow(self, body: Body) -> None:
        """Return if the repository may serve a body. Raises ``RegistryError``.

        Every client can get public content, so a claim in a manifest is enough for it.
        """
        if body.is_confirmed or (body.is_public and self.size is not None):
            return
        if self.confirm is None:
            raise _nowhere(self)
        await self.confirm()


class SourcesBody:
    """A body that outlives the source that it began with. Close it when done."""

    def __init__(self, fetch: Fetch) -> None:
        self.size: int | None = None
        self._fetch = fetch
        self._left = deque(fetch.sources)
        self._asked: list[Source] = []
        self._body: Body | None = None
        self._given = Intervals()
        self.place = Place.REGISTRY
        """The source of the first byte."""
        self.is_public = True
        """True if every source of bytes needed no credentials for them."""

    @classmethod
    async def opened(cls, fetch: Fetch) -> Self:
        """Return the body of the first source that has it.

        Raises what the registry raised, or the last source without one: ``NotFound`` or
        ``UpstreamFailure``.
        """
        body = cls(fetch)
        await body._open_next()
        assert body._body is not None
        body.size = fetch.size if body._body.size is None else body._body.size
        return body

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield every byte. If a source breaks off, the next one continues from its last byte.

        A piece that the first one sent ahead of a gap may arrive twice. Raises ``UpstreamFailure``.
        """
        while True:
            assert self._body is not None
            try:
                async with aclosing(self._body.pieces()) as pieces:
                    async for piece in pieces:
                        self._given.add(piece.offset, piece.offset + len(piece.data))
                        yield piece
            except UpstreamFailure as error:
                if not self._left:
                    raise
                log.warning(
                    "a source broke off, continuing with the next one",
                    digest=self._fetch.digest,
                    at=self._given.contiguous,
                    error=error.message,
                )
                await self.aclose()
                await self._open_next()
            else:
                return

    def reject(self) -> None:
        """Tell every source of bytes that they were wrong."""
        for source in self._asked:
            source.reject(self._fetch.digest)

    async def aclose(self) -> None:
        """End the transfer. A second call does nothing."""
        if self._body is not None:
            await self._body.aclose()

    async def _open_next(self) -> None:
        fetch, at = self._fetch, self._given.contiguous
        failures = _Failures(fetch)
        while self._left:
            source = self._left.popleft()
            try:
                body = await source.open(fetch.target, fetch.digest, at, fetch.priority)
                await self._accept(body)
            except RegistryError as error:
                failures.add(source, error)
                continue
            if self._body is None:
                self.place = source.place
            self._body = body
            self._asked.append(source)
            self.is_public = self.is_public and body.is_public
            return
        raise failures.final

    async def _accept(self, body: Body) -> None:
        """Return if a body can continue the blob, else close it. Raises ``RegistryError``."""
        try:
            await self._fetch.allow(body)
        except BaseException:
            await body.aclose()
            raise
        if self.size is not None and body.size not in (None, self.size):
            await body.aclose()
            raise UpstreamUnavailable(f"{self._fetch.target}: the next source has another size")


async def blob_size(fetch: Fetch) -> int | None:
    """Return a blob's size in bytes from the first source that has it, None if not announced.

    Raises what the registry raised, or the last source without one: ``NotFound`` or
    ``UpstreamFailure``.
    """
    failures = _Failures(fetch)
    for source in fetch.sources:
        try:
            return await source.blob_size(fetch.target, fetch.digest)
        except RegistryError as error:
            failures.add(source, error)
    raise failures.final


class _Failures:
    """The reasons why no source has a blob. ``final`` is the registry's, else the last source's.

    Only the registry can state that a blob does not exist. A source that is asked after a failing
    registry must not turn that failure into an absence.
    """

    def __init__(self, fetch: Fetch) -> None:
        self.final: RegistryError = _nowhere(fetch)
        self._is_decided = False

    def add(self, source: Source, error: RegistryError) -> None:
        """Note the failure of one source."""
        if not self._is_decided:
            self.final = error
            self._is_decided = source.place is Place.REGISTRY


def _nowhere(fetch: Fetch) -> RegistryError:
    return BlobUnknown(f"{fetch.target}@{fetch.digest}: no source has it")
