"""Answers for blobs: held, arriving, or passed through."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from proxy.cache.answers import Blob, Live, Local, Sized, Through
from proxy.cache.holdings import Holdings
from proxy.cache.sources import Source
from proxy.errors import Absent, BlobUnknown, ContentMismatch, NotHeld, RegistryError, StorageError
from proxy.facts import Facts
from proxy.flights import Flight, Flights
from proxy.metrics import Outcome
from proxy.names import Digest, Target, hasher
from proxy.policy import Wish
from proxy.records import Descriptor
from proxy.upstream.registry import Body

log = structlog.get_logger(__name__)


class Blobs:
    """The cache of blobs. ``sizes`` tells, in bytes, what manifests say of blobs to come."""

    def __init__(
        self,
        holdings: Holdings,
        sources: Mapping[str, Source],
        *,
        flights: Flights,
        sizes: Mapping[Digest, int],
    ) -> None:
        self._holdings = holdings
        self._index = holdings.index
        self._flights = flights
        self._sources = sources
        self._sizes = sizes
        self._absent: Facts[str] = Facts()

    async def get(self, target: Target, digest: Digest, asked: Wish) -> Blob:
        """Return a blob to be sent and then closed. Raises ``RegistryError``."""
        while True:
            linked = await self._index.linked(target, digest)
            if linked and (file := await self._holdings.open(digest)) is not None:
                return Local(file)
            self._refuse_asking(target, digest, asked)
            if not linked and await self._holdings.holds(digest):
                await self._vouch(target, digest)
                continue
            if self._flights.live(digest) is None:
                await self._refuse_absent(target, digest)
            reader = self._flights.join(
                target, digest, lambda flight: self._download(target, flight)
            )
            own = reader.flight.target == target
            if not linked and not own:
                reader.close()
                await self._vouch(target, digest)
                continue
            try:
                await reader.flight.opened()
            except StorageError as error:
                reader.close()
                log.info("passing through", digest=digest, reason=str(error))
                return await self._through(target, digest)
            except BaseException as error:
                reader.close()
                if own or not isinstance(error, RegistryError):
                    raise
            else:
                return Live(reader)

    async def head(self, target: Target, digest: Digest, asked: Wish) -> Sized:
        """Return a blob's size, asking upstream for no body. Raises ``RegistryError``."""
        linked = await self._index.linked(target, digest)
        record = await self._index.blob(digest)
        if linked and record is not None:
            self._index.touch(digest)
            return Sized(record.size, Outcome.HIT)
        self._refuse_asking(target, digest, asked)
        size = await self._vouch(target, digest)
        if record is not None:
            return Sized(record.size, Outcome.REVALIDATED)
        return Sized(size, Outcome.MISS)

    async def _vouch(self, target: Target, digest: Digest) -> int | None:
        """Have upstream say that the repository holds the blob; return its size in bytes.

        So one repository's content is never had through another's name.
        """
        await self._refuse_absent(target, digest)
        try:
            size = await self._sources[target.upstream].upstream.blob_size(target.repo, digest)
        except Absent as error:
            await self._learn_absent(target, digest, error)
            raise
        await self._index.link(target, [digest])
        return size

    async def _download(self, target: Target, flight: Flight) -> None:
        """Fly one flight: reserve, open, spool, prove, keep."""
        digest = flight.digest
        announced = self._sizes.get(digest)
        async with AsyncExitStack() as resources:
            reservation = await self._holdings.evictor.reserve(announced or 0)
            resources.callback(reservation.release)
            async with self._body(target, digest) as body:
                size = announced if body.size is None else body.size
                await reservation.grow(size or 0)
                spool = await self._holdings.store.spool(digest, size)
                resources.callback(spool.discard)
                flight.open(spool, size)
                try:
                    await flight.pump(body.chunks, reservation.grow)
                except ContentMismatch as error:
                    self._mismatch(error)
                    raise
            await self._index.link(target, [digest])
            await self._holdings.adopt(reservation, spool, Descriptor("", digest, flight.written))

    async def _through(self, target: Target, digest: Digest) -> Through:
        """Return a body that is proven on its way and not kept."""
        async with AsyncExitStack() as resources:
            body = await resources.enter_async_context(self._body(target, digest))
            return Through(body.size, self._proven(body, target, digest), resources.pop_all())
        raise AssertionError("unreachable")

    async def _proven(self, body: Body, target: Target, digest: Digest) -> AsyncIterator[bytes]:
        state = hasher(digest)
        held_back = b""
        async for chunk in body.chunks:
            state.update(chunk)
            yield held_back + chunk[:-1]
            held_back = chunk[-1:]
        if state.hexdigest() != digest.partition(":")[2]:
            mismatch = ContentMismatch(f"{target}: what came is not {digest}")
            self._mismatch(mismatch)
            raise mismatch
        await self._index.link(target, [digest])
        yield held_back

    @asynccontextmanager
    async def _body(self, target: Target, digest: Digest) -> AsyncIterator[Body]:
        upstream = self._sources[target.upstream].upstream
        try:
            async with upstream.blob(target.repo, digest) as body:
                yield body
        except Absent as error:
            await self._learn_absent(target, digest, error)
            raise

    def _mismatch(self, error: ContentMismatch) -> None:
        self._holdings.counters.mismatches += 1
        log.error("content mismatch", error=error.message)

    def _refuse_asking(self, target: Target, digest: Digest, asked: Wish) -> None:
        if self._sources[target.upstream].rule.offline:
            raise BlobUnknown(f"{target}@{digest} is not held, and this is offline")
        if asked is Wish.HELD:
            raise NotHeld(f"{target}@{digest} is not held")

    async def _refuse_absent(self, target: Target, digest: Digest) -> None:
        message = await self._absent.get(f"{target} {digest}")
        if message is not None:
            raise BlobUnknown(message)

    async def _learn_absent(self, target: Target, digest: Digest, error: Absent) -> None:
        ttl = self._sources[target.upstream].rule.negative_ttl
        await self._absent.learn(f"{target} {digest}", error.message, ttl)
