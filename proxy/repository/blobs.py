"""Blobs: from the disk, from a download in progress, or passed through."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Final

import structlog

from proxy.content.content import Content
from proxy.content.downloads import Downloads, Reader
from proxy.content.fetching import Fetch, SourcesBody, blob_size
from proxy.core.errors import (
    BlobUnknown,
    ContentMismatch,
    Denied,
    NotFound,
    NotHeld,
    StorageError,
    TooManyRequests,
)
from proxy.core.names import Digest, DigestVerifier, Target
from proxy.core.policy import CacheDirective
from proxy.core.sources import Priority
from proxy.repository.negative_cache import NegativeCache
from proxy.repository.origins import Origin
from proxy.repository.results import Blob, BlobHead, LiveBlob, LocalBlob, PassThroughBlob
from proxy.runtime.executors import in_thread
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight

log = structlog.get_logger(__name__)


class Blobs:
    """The cache of blobs.

    ``sizes`` has the sizes in bytes that manifests give for blobs. ``on_request`` gets each blob
    that a client requests by GET.
    """

    def __init__(
        self,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        downloads: Downloads,
        sizes: Mapping[tuple[Target, Digest], int],
        on_request: Callable[[Target, Digest], None],
    ) -> None:
        self._content = content
        self._downloads = downloads
        self._sources = sources
        self._sizes = sizes
        self.requested: Final = on_request
        self.absences: Final = NegativeCache(sources, BlobUnknown, content.clock)
        self._heads: SingleFlight[int | None] = SingleFlight("confirm blob")

    async def get(self, target: Target, digest: Digest, directive: CacheDirective) -> Blob:
        """Return a blob to be sent and then closed. Raises ``RegistryError``."""
        self.requested(target, digest)
        if directive is CacheDirective.REVALIDATE:
            await self.absences.forget(target, digest)
        while True:
            linked = await self._linked(target, digest)
            if linked and (blob := await self._content.open(digest)) is not None:
                return LocalBlob(blob)
            self._refuse_asking(target, digest, directive)
            if not linked and await self._content.holds(digest):
                try:
                    await self.confirm(target, digest)
                except TooManyRequests:  # a limit of HEADs need not be one of downloads
                    return await self._through(target, digest)
                continue
            if self._downloads.live(target, digest) is None:
                await self.absences.refuse(target, digest)
                if await self._cannot_fit(target, digest):
                    return await self._through(target, digest)
            arriving = await self._join(target, digest, linked=linked)
            if arriving is not None:
                return arriving

    async def begin(self, target: Target, digest: Digest, priority: Priority) -> Reader | None:
        """Begin to fetch a blob that no client has requested; None if held, or without space.

        Also None if it already arrives. Raises ``NotFound`` if upstream does not have the blob.
        """
        await self.absences.refuse(target, digest)
        if await self._content.holds(digest) or await self._cannot_fit(target, digest):
            return None
        if self._downloads.live(target, digest) is not None:
            return None
        return self._downloads.join(self._wanted(target, digest, priority))

    async def rest(
        self, target: Target, digest: Digest, failed: LocalBlob | LiveBlob, sent: range
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes after those that were ``sent``, passed through, after a disk has failed.

        A held blob is set aside. The new bytes must include those that were sent: all of it is
        proven together. What is before them was not sent, and may not be on the disk. Raises
        ``RegistryError``.
        """
        if isinstance(failed, LocalBlob):
            self._content.faults.read_failed()
            await self._content.faults.quarantine(digest, {"reason": "it cannot be read"})
        elif failed.reader.download.failure is None:  # otherwise it has been counted
            self._content.faults.read_failed()
        source = failed.reader if isinstance(failed, LiveBlob) else failed
        through = await self._through(target, digest)
        position = 0
        try:
            async for chunk in through.chunks:
                start = max(sent.start, position)
                stop = min(sent.stop, position + len(chunk))
                if start < stop and chunk[start - position : stop - position] != await in_thread(
                    partial(source.read, start, stop)
                ):
                    raise ContentMismatch(f"{target}: the new bytes differ from those sent before")
                yield chunk[max(0, sent.stop - position) :]
                position += len(chunk)
        finally:
            await through.aclose()

    async def head(self, target: Target, digest: Digest, directive: CacheDirective) -> BlobHead:
        """Return a blob's size, asking upstream for no body. Raises ``RegistryError``."""
        linked = await self._linked(target, digest)
        held = await self._size(digest)
        if linked and held is not None:
            return BlobHead(held, Outcome.HIT)
        download = self._downloads.live(target, digest)
        if download is not None and download.is_open and (linked or download.target == target):
            return BlobHead(download.size, Outcome.JOIN)
        self._refuse_asking(target, digest, directive)
        announced = await self.confirm(target, digest)
        if held is not None:
            return BlobHead(held, Outcome.REVALIDATED)
        return BlobHead(announced, Outcome.MISS)

    async def fetch(self, target: Target, digest: Digest) -> bool:
        """Fetch a blob unless it is held; return whether it is now. Raises ``RegistryError``."""
        blob = await self.get(target, digest, CacheDirective.REVALIDATE)
        try:
            if isinstance(blob, LiveBlob):
                await blob.reader.download.proven()
                await self._downloads.ended(target, digest)
        finally:
            await blob.aclose()
        return await self._content.holds(digest)

    async def confirm(self, target: Target, digest: Digest) -> int | None:
        """Confirm with a source that the repository holds the blob; return its size in bytes.

        So a client never gets one repository's content through another's name. Raises
        ``RegistryError``.
        """
        return await self._heads.do((target, digest), lambda: self._ask(target, digest))

    async def close(self) -> None:
        """Cancel running requests."""
        await self._heads.close()

    async def _ask(self, target: Target, digest: Digest) -> int | None:
        await self.absences.refuse(target, digest)
        try:
            sources = self._sources[target.upstream].confirming_sources
            size = await blob_size(Fetch(target, digest, sources))
        except NotFound as error:
            await self.absences.learn(target, digest, error)
            raise
        await self._content.links.add(target, [digest])
        return size

    async def _join(self, target: Target, digest: Digest, *, linked: bool) -> Blob | None:
        """Return the blob as it arrives, or passed through; None to start again.

        Another request may have begun the download: for another repository, whose absence proves
        nothing about this one; as a prefetch, which stops at the first refusal; or for a client
        that upstream refuses, unlike this one. If such a download fails before it has opened, this
        request starts its own.
        """
        reader = self._downloads.join(self._wanted(target, digest))
        download = reader.download
        is_own = download.target == target
        try:
            if not linked and not is_own and not self._will_be_public(target, digest):
                await self.confirm(target, digest)
            await download.opened()
        except StorageError as error:
            reader.close()
            log.info("passing through", digest=digest, reason=str(error))
            return await self._through(target, digest)
        except BaseException as error:
            reader.close()
            if isinstance(error, TooManyRequests) and download.failure is not error:
                return await self._through(target, digest)  # see ``get``
            if download.failure is not error:
                raise
            if is_own and isinstance(error, NotFound):
                await self.absences.learn(target, digest, error)
            is_others_refusal = isinstance(error, Denied) and not reader.is_first
            if is_own and not download.is_prefetch and not is_others_refusal:
                raise
            return None
        return LiveBlob(reader)

    def _wanted(
        self, target: Target, digest: Digest, priority: Priority = Priority.DOWNLOAD
    ) -> Fetch:
        """Return the blob to fetch with its sources."""
        size = self._sizes.get((target, digest))
        sources = self._sources[target.upstream].sources_of(size)
        return Fetch(target, digest, sources, size, priority, partial(self._allow, target, digest))

    async def _allow(self, target: Target, digest: Digest) -> None:
        """Return if the repository may serve a blob. Raises ``RegistryError``."""
        if not await self._linked(target, digest):
            await self.confirm(target, digest)

    async def _size(self, digest: Digest) -> int | None:
        """Return the size of held content in bytes; opening it proves that it is there."""
        blob = await self._content.open(digest)
        if blob is None:
            return None
        blob.close()
        return blob.size

    async def _linked(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository may serve a blob without asking upstream.

        That includes public content, if a manifest of the repository lists it.
        """
        if await self._content.links.has(target, digest):
            return True
        if (target, digest) in self._sizes and await self._content.is_public(digest):
            await self._content.links.add(target, [digest])
            return True
        return False

    def _will_be_public(self, target: Target, digest: Digest) -> bool:
        """Return True if a blob that arrives from a repository's upstream may be served there."""
        is_public = self._sources[target.upstream].upstream.is_public
        return is_public and (target, digest) in self._sizes

    async def _cannot_fit(self, target: Target, digest: Digest) -> bool:
        size = self._sizes.get((target, digest), 0)
        return await self._downloads.cannot_fit(target, digest, size)

    async def _through(self, target: Target, digest: Digest) -> PassThroughBlob:
        """Return a body that is proven on its way and not kept."""
        try:
            body = await SourcesBody.opened(self._wanted(target, digest, Priority.PASS_THROUGH))
        except NotFound as error:
            await self.absences.learn(target, digest, error)
            raise
        return PassThroughBlob(body, self._proven(body, target, digest))

    async def _proven(
        self, body: SourcesBody, target: Target, digest: Digest
    ) -> AsyncGenerator[bytes, None]:
        """Yield a body in its order, the last byte once all of it is proven."""
        verifier = DigestVerifier(digest)
        held_back = b""
        async with aclosing(body.pieces()) as pieces:
            async for _, data in pieces:
                verifier.update(data)
                yield held_back + data[:-1]
                held_back = bytes(data[-1:])
        try:
            verifier.check(target)
        except ContentMismatch as error:
            body.reject()
            self._content.faults.report_mismatch(error, target, digest, body.place)
            raise
        await self._content.links.add(target, [digest])
        yield held_back

    def _refuse_asking(self, target: Target, digest: Digest, directive: CacheDirective) -> None:
        if not self._sources[target.upstream].blob_sources:
            raise BlobUnknown(f"{target}@{digest} is not held, and this is offline")
        if directive is CacheDirective.ONLY_IF_CACHED:
            raise NotHeld(f"{target}@{digest} is not held")
