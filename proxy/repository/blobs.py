"""Answers for blobs: held, arriving, or passed through."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from proxy.content.content import Content
from proxy.content.downloads import Download, Downloads, Reader
from proxy.core.errors import (
    BlobUnknown,
    ContentMismatch,
    NotFound,
    NotHeld,
    StorageError,
    TooManyRequests,
)
from proxy.core.names import Digest, DigestVerifier, Target
from proxy.core.policy import CacheDirective
from proxy.core.records import Descriptor
from proxy.repository.negative_cache import NegativeCache
from proxy.repository.origins import Origin
from proxy.repository.prefetch_tracker import PrefetchTracker
from proxy.repository.results import Blob, Live, Local, Sized, Through
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight
from proxy.runtime.ttl_cache import TTLCache
from proxy.storage import BlobFile
from proxy.upstream.registry import Body, Priority

UNFIT_SECONDS: Final = 30.0
"""For so long a blob that could not be kept is passed through without trying to."""

log = structlog.get_logger(__name__)


class Blobs:
    """The cache of blobs. ``sizes`` tells, in bytes, what manifests say of blobs to come."""

    def __init__(
        self,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        flights: Downloads,
        sizes: Mapping[tuple[Target, Digest], int],
        expected: PrefetchTracker,
    ) -> None:
        self._content = content
        self._flights = flights
        self._sources = sources
        self._sizes = sizes
        self._expected = expected
        self._absences = NegativeCache(sources, BlobUnknown, content.clock)
        self._unfit: TTLCache[bool] = TTLCache()
        self._questions: SingleFlight[int | None] = SingleFlight("confirm blob")

    async def get(self, target: Target, digest: Digest, asked: CacheDirective) -> Blob:
        """Return a blob to be sent and then closed. Raises ``RegistryError``."""
        self._expected.asked(target, digest)
        if asked is CacheDirective.REVALIDATE:
            await self._absences.forget(target, digest)
        while True:
            linked = await self._linked(target, digest)
            if linked and (file := await self._content.open(digest)) is not None:
                return self._local(target, digest, file)
            self._refuse_asking(target, digest, asked)
            if not linked and await self._content.holds(digest):
                try:
                    await self.confirm(target, digest)
                except TooManyRequests:  # of questions, which is no limit of downloads
                    return await self._through(target, digest)
                continue
            if self._flights.live(target, digest) is None:
                await self._absences.refuse(target, digest)
                if await self._cannot_fit(target, digest):
                    return await self._through(target, digest)
            arriving = await self._join(target, digest, linked=linked)
            if arriving is not None:
                return arriving

    async def ahead(self, target: Target, digest: Digest) -> Reader | None:
        """Begin to fetch a blob that nobody has asked for; None when there is no need or no way.

        To be let go of by ``Downloads.abandon``. Raises ``NotFound`` if upstream lacks it.
        """
        await self._absences.refuse(target, digest)
        if await self._content.holds(digest) or await self._cannot_fit(target, digest):
            return None
        if self._flights.live(target, digest) is not None:
            return None
        reader = self._flights.join(
            target, digest, lambda flight: self._download(target, flight, Priority.PREFETCH)
        )
        reader.flight.is_ahead = True
        return reader

    async def _join(self, target: Target, digest: Digest, *, linked: bool) -> Blob | None:
        """Return the blob as it arrives, or passed through; None when all is to be asked anew."""
        reader = self._flights.join(target, digest, lambda flight: self._download(target, flight))
        own = reader.flight.target == target
        try:
            if not linked and not own and not self._will_be_public(target, digest):
                await self.confirm(target, digest)
            await reader.flight.opened()
        except StorageError as error:
            reader.close()
            log.info("passing through", digest=digest, reason=str(error))
            return await self._through(target, digest)
        except BaseException as error:
            reader.close()
            if isinstance(error, TooManyRequests) and reader.flight.failure is not error:
                return await self._through(target, digest)  # see ``get``
            final = own and not reader.flight.is_ahead
            if final or reader.flight.failure is not error:
                raise
            return None
        return self._live(target, digest, reader)

    def _live(self, target: Target, digest: Digest, reader: Reader) -> Live:
        flight = reader.flight

        def rest(offset: int) -> AsyncIterator[bytes]:
            if flight.failure is None:  # else it has been counted
                self._content.read_failed()
            return self._rest(target, digest, flight.fd, offset)

        return Live(reader, rest)

    def _local(self, target: Target, digest: Digest, file: BlobFile) -> Local:
        """Return a held blob; if it turns out to be unreadable it is held no longer."""

        async def rest(offset: int) -> AsyncIterator[bytes]:
            self._content.read_failed()
            await self._content.set_aside(digest, {"reason": "it cannot be read"})
            async for chunk in self._rest(target, digest, file.fd, offset):
                yield chunk

        return Local(file, rest)

    async def head(self, target: Target, digest: Digest, asked: CacheDirective) -> Sized:
        """Return a blob's size, asking upstream for no body. Raises ``RegistryError``."""
        linked = await self._linked(target, digest)
        held = await self._size(digest)
        if linked and held is not None:
            return Sized(held, Outcome.HIT)
        flight = self._flights.live(target, digest)
        if flight is not None and flight.is_open and (linked or flight.target == target):
            return Sized(flight.size, Outcome.JOIN)
        self._refuse_asking(target, digest, asked)
        announced = await self.confirm(target, digest)
        if held is not None:
            return Sized(held, Outcome.REVALIDATED)
        return Sized(announced, Outcome.MISS)

    async def holds(self, digest: Digest) -> bool:
        """Return True if a blob is on the disk."""
        return await self._content.holds(digest)

    async def fetch(self, target: Target, digest: Digest) -> bool:
        """Have a blob here that is not; tell whether it is now. Raises ``RegistryError``."""
        blob = await self.get(target, digest, CacheDirective.REVALIDATE)
        try:
            if isinstance(blob, Live):
                await blob.reader.flight.proven()
                await self._flights.ended(target, digest)
        finally:
            await blob.aclose()
        return await self._content.holds(digest)

    async def close(self) -> None:
        """Cancel what runs."""
        await self._questions.close()

    async def _size(self, digest: Digest) -> int | None:
        """Return the size of held content in bytes, having looked at it."""
        file = await self._content.open(digest)
        if file is None:
            return None
        file.close()
        return file.size

    async def _linked(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository may serve a blob without a question.

        That includes whatever is public, if a manifest of the repository lists it.
        """
        if await self._content.linked(target, digest):
            return True
        if (target, digest) in self._sizes and await self._content.is_public(digest):
            await self._content.link(target, [digest])
            return True
        return False

    def _will_be_public(self, target: Target, digest: Digest) -> bool:
        """Return True if a blob that arrives from a repository's upstream may be served there."""
        is_anonymous = self._sources[target.upstream].upstream.is_anonymous
        return is_anonymous and (target, digest) in self._sizes

    async def confirm(self, target: Target, digest: Digest) -> int | None:
        """Have upstream say that the repository holds the blob; return its size in bytes.

        So one repository's content is never had through another's name.
        """
        await self._absences.refuse(target, digest)

        async def ask() -> int | None:
            try:
                size = await self._sources[target.upstream].upstream.blob_size(target.repo, digest)
            except NotFound as error:
                await self._absences.learn(target, digest, error)
                raise
            await self._content.link(target, [digest])
            return size

        return await self._questions.do((target, digest), ask)

    async def _download(
        self, target: Target, flight: Download, need: Priority = Priority.DOWNLOAD
    ) -> None:
        """Fly one flight: open, reserve, spool, prove, keep."""
        digest, content = flight.digest, self._content
        is_public = self._sources[target.upstream].upstream.is_anonymous
        async with AsyncExitStack() as resources:
            try:
                async with self._body(target, digest, need) as body:
                    size = body.size
                    if size is None:
                        size = self._sizes.get((target, digest))
                    room = await content.arrival(target.upstream, size)
                    flight.on_closed(room.release)  # a removed spool takes room while it is read
                    spool = await content.spool(digest, None)
                    resources.callback(spool.discard)
                    flight.open(spool, size)
                    await flight.pump(body.pour, room.grow)
                await self._content.link(target, [digest])
                arrived = Descriptor("", digest, flight.written)
                await content.adopt(room, spool, arrived, is_public=is_public)
            except ContentMismatch as error:
                self._content.mismatched(error)
                raise
            except StorageError as error:
                content.trouble(error)
                await self._unfit.set(f"{target} {digest}", True, UNFIT_SECONDS)  # noqa: FBT003 - the fact
                raise

    async def _cannot_fit(self, target: Target, digest: Digest) -> bool:
        """Tell whether a download would only find out that there is no room."""
        announced = self._sizes.get((target, digest), 0)
        if not self._content.admits(target.upstream, announced):
            return True
        return bool(await self._unfit.get(f"{target} {digest}"))

    async def _through(self, target: Target, digest: Digest) -> Through:
        """Return a body that is proven on its way and not kept."""
        async with AsyncExitStack() as resources:
            body = await resources.enter_async_context(
                self._body(target, digest, Priority.PASS_THROUGH)
            )
            return Through(body.size, self._proven(body, target, digest), resources.pop_all())
        raise AssertionError("unreachable")

    async def _rest(
        self, target: Target, digest: Digest, fd: int, offset: int
    ) -> AsyncIterator[bytes]:
        """Yield a blob from ``offset`` on, passed through, after the disk has failed it.

        What comes before must be what was sent from ``fd``; all of it is proven together.
        """
        through = await self._through(target, digest)
        position = 0
        try:
            async for chunk in through.chunks:
                sent = chunk[: max(0, offset - position)]
                if sent and sent != os.pread(fd, len(sent), position):
                    raise ContentMismatch(f"{target}: what came anew is not what came before")
                position += len(chunk)
                yield chunk[len(sent) :]
        finally:
            await through.aclose()

    async def _proven(self, body: Body, target: Target, digest: Digest) -> AsyncIterator[bytes]:
        proof = DigestVerifier(digest)
        held_back = b""
        async for chunk in body.chunks:
            proof.take(chunk)
            yield held_back + chunk[:-1]
            held_back = chunk[-1:]
        try:
            proof.check(target)
        except ContentMismatch as error:
            self._content.mismatched(error)
            raise
        await self._content.link(target, [digest])
        yield held_back

    @asynccontextmanager
    async def _body(self, target: Target, digest: Digest, need: Priority) -> AsyncIterator[Body]:
        upstream = self._sources[target.upstream].upstream
        try:
            async with upstream.blob(target.repo, digest, need) as body:
                yield body
        except NotFound as error:
            await self._absences.learn(target, digest, error)
            raise

    def _refuse_asking(self, target: Target, digest: Digest, asked: CacheDirective) -> None:
        if self._sources[target.upstream].rule.offline:
            raise BlobUnknown(f"{target}@{digest} is not held, and this is offline")
        if asked is CacheDirective.ONLY_IF_CACHED:
            raise NotHeld(f"{target}@{digest} is not held")
