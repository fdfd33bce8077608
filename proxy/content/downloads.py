"""One download, many readers.

A download is independent of requests: any client may disconnect, including the first. A reader is
an offset into the spool, so memory does not grow with readers or with slow ones. The last byte is
held back until the digest is proven: a client detects a truncated body, but might not detect a
complete wrong one.
"""

import asyncio
import time
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Final

import structlog

from proxy.content.content import Content
from proxy.content.fetching import Fetch, SourcesBody
from proxy.content.notices import Cached
from proxy.content.writer import Writer
from proxy.core.errors import ContentMismatch, RegistryError, StorageError, UpstreamUnavailable
from proxy.core.names import Digest, Target
from proxy.core.sources import Place, Priority
from proxy.runtime import spans
from proxy.runtime.pulse import Pulse
from proxy.runtime.ttl_cache import TTLCache

if TYPE_CHECKING:
    from collections.abc import Callable

UNFIT_SECONDS: Final = 30.0
"""Seconds for which a blob that could not be stored is passed through without another attempt."""

_TAIL: Final = 1
"""Bytes held back until all are proven."""

log = structlog.get_logger(__name__)


class Download:
    """One download: not begun, then growing, then proven or failed.

    ``size`` is None until a source announces it.
    ``is_prefetch``: no client has asked for it.
    """

    def __init__(self, fetch: Fetch) -> None:
        self.target: Final = fetch.target
        self.digest: Final = fetch.digest
        self.is_prefetch: Final = fetch.priority is Priority.PREFETCH
        self.is_proven = False
        self.is_public = False
        self.place = Place.REGISTRY
        self.failure: Exception | None = None
        self.writer: Writer | None = None
        self._changed = Pulse()  # the writer's own, once there is one
        self._holds = 1  # the task's own

    def __repr__(self) -> str:
        state = "proven" if self.is_proven else "failed" if self.failure else "open"
        return f"<Download {self.digest[:19]} {self.written}/{self.size} {state}>"

    @property
    def written(self) -> int:
        """Bytes that have arrived without a gap."""
        return 0 if self.writer is None else self.writer.written

    @property
    def size(self) -> int | None:
        """Length in bytes, None if it is not known yet."""
        return None if self.writer is None else self.writer.size

    @property
    def is_open(self) -> bool:
        """A source has answered, so ``size`` is all that is announced."""
        return self.writer is not None

    @property
    def is_read(self) -> bool:
        """At least one reader has it open."""
        return self._holds > 1

    @property
    def readers(self) -> int:
        """The number of readers."""
        return max(0, self._holds - 1)

    def begin(self, writer: Writer, body: SourcesBody) -> None:
        """Let readers read what ``writer`` has written of ``body``."""
        self.is_public, self.place = body.is_public, body.place
        before, self.writer, self._changed = self._changed, writer, writer.progress
        before.beat()

    def mark_proven(self) -> None:
        """Let readers have the last byte: all is proven."""
        self.is_proven = True
        self._changed.beat()

    def fail(self, failure: Exception) -> None:
        """Fail every reader with an error; does nothing to a proven one."""
        if not self.is_proven:
            self.failure = failure
            self._changed.beat()

    def hold(self) -> None:
        """Keep the spool open for one more reader."""
        self._holds += 1

    def release(self) -> None:
        """End one hold. The last one closes the spool and releases its space."""
        self._holds -= 1
        if self._holds == 0 and self.writer is not None:
            self.writer.close()

    async def opened(self) -> None:
        """Return once a source has answered. Raises the failure before that."""
        while not self.is_open:
            await self._change()

    async def proven(self) -> None:
        """Return once all bytes have arrived and are proven. Raises the failure."""
        while not self.is_proven:
            await self._change()

    async def readable(self, offset: int) -> int:
        """Return the end of the bytes that may be read from ``offset``; ``offset`` at the end.

        Waits for more bytes. Raises the failure of the download.
        """
        while True:
            if self.is_proven:
                return max(self.written, offset)
            if self.failure is None and self.written - _TAIL > offset:
                return self.written - _TAIL
            await self._change()

    async def _change(self) -> None:
        if self.failure is not None:
            raise self.failure
        await self._changed.wait()


class Reader:
    """One request's hold on a download; close it when done. ``is_first``: it began the download."""

    def __init__(self, download: Download, downloads: "Downloads", *, is_first: bool) -> None:
        download.hold()
        self.download: Final = download
        self.is_first: Final = is_first
        self._downloads = downloads
        self._is_closed = False

    @property
    def size(self) -> int | None:
        """Length in bytes, None if it is not known yet."""
        return self.download.size

    @property
    def fd(self) -> int:
        """The spool's descriptor."""
        assert self.download.writer is not None
        return self.download.writer.fd

    def read(self, start: int, stop: int) -> bytes:
        """Return readable bytes. Blocks. Raises ``StorageError``."""
        assert self.download.writer is not None
        return self.download.writer.read(start, stop)

    async def readable(self, offset: int) -> int:
        """Return as ``Download.readable`` does."""
        return await self.download.readable(offset)

    def close(self) -> None:
        """Stop reading the download. A second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self.download.release()
            self._downloads.drop_if_unwanted(self.download)


class Downloads:
    """All downloads in progress, by upstream and digest; owns their tasks.

    Until its digest is proven, a body is only the claim of one upstream. So clients of one upstream
    never read the unproven bytes of another, and two upstreams may send the same digest at the
    same time.

    A download without readers continues if at least the share ``min_complete`` (0 to 1) of it has
    arrived: 0 finishes every download, above 1 none.
    """

    def __init__(self, content: Content, min_complete: float = 0.0) -> None:
        self._content = content
        self._min_complete = min_complete
        self._live: dict[tuple[str, Digest], Download] = {}
        self._tasks: dict[Download, asyncio.Task[None]] = {}
        self._unfit: TTLCache[bool] = TTLCache()
        self.on_ended: Final[list[Callable[[Download], None]]] = []
        """Called with each download after its last step, stored or failed."""

    def all(self) -> list[Download]:
        """Return the downloads in progress."""
        return list(self._live.values())

    def live(self, target: Target, digest: Digest) -> Download | None:
        """Return the download that ``join`` would join."""
        return self.of(target.upstream, digest)

    def of(self, upstream: str, digest: Digest) -> Download | None:
        """Return an upstream's download of a digest."""
        return self._live.get((upstream, digest))

    def follow(self, target: Target, digest: Digest) -> Reader | None:
        """Return a reader of a download that runs already, None if there is none."""
        download = self.live(target, digest)
        return None if download is None else Reader(download, self, is_first=False)

    def join(self, fetch: Fetch) -> Reader:
        """Return a reader of the upstream's one download of a digest, begun here if need be."""
        download = self.live(fetch.target, fetch.digest)
        if download is not None:
            return Reader(download, self, is_first=False)
        download = self._live[fetch.target.upstream, fetch.digest] = Download(fetch)
        run = self._run(download, fetch)
        task = asyncio.create_task(run, name=f"download {fetch.digest[:19]}")
        self._tasks[download] = task
        task.add_done_callback(lambda _: self._task_ended(download))
        return Reader(download, self, is_first=True)

    async def cannot_fit(self, target: Target, digest: Digest, size: int) -> bool:
        """Return True if a download would certainly find no space; size 0 is unknown."""
        if not self._content.evictor.admits(target.upstream, size):
            return True
        return bool(await self._unfit.get(f"{target} {digest}"))

    async def ended(self, target: Target, digest: Digest) -> None:
        """Return once the download in progress, if any, is stored or has failed."""
        download = self.live(target, digest)
        if download is not None and (task := self._tasks.get(download)) is not None:
            await asyncio.wait([task])

    def abandon(self, reader: Reader) -> None:
        """Close a reader; the download ends unless it is proven or has other readers."""
        reader.close()
        if not reader.download.is_proven and not reader.download.is_read:
            self._drop(reader.download)

    def drop_if_unwanted(self, download: Download) -> None:
        """End a download without readers if too little of it has arrived."""
        if self._min_complete <= 0 or download.is_proven or download.is_read:
            return
        if download.written < self._min_complete * (download.size or float("inf")):
            self._drop(download)

    async def close(self) -> None:
        """Cancel downloads that are not proven, store the rest, and wait until all have ended."""
        for download, task in self._tasks.items():
            if not download.is_proven:
                task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _fetch(self, download: Download, fetch: Fetch) -> None:
        """Copy a body from the first source that has it to the cache, and notify the readers."""
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            async with aclosing(await SourcesBody.opened(fetch)) as body:
                writer = await self._content.writer(fetch.target, fetch.digest, body.size)
                await stack.enter_async_context(writer)
                download.begin(writer, body)
                async with aclosing(body.pieces()) as pieces:
                    async for offset, data in pieces:
                        await writer.write(offset, data)
                try:
                    await writer.prove()
                except ContentMismatch:
                    body.reject()
                    raise
                download.mark_proven()
            if await writer.commit(is_public=body.is_public):
                seconds = time.monotonic() - started
                cached = Cached(fetch.target, fetch.digest, writer.written, body.place, seconds)
                self._content.arrived(cached)

    async def _run(self, download: Download, fetch: Fetch) -> None:
        """Run one download. A failure is stored in it for its readers, and not raised."""
        failure: Exception = _cancelled()
        try:
            about: spans.Attributes = {"millpond.digest": fetch.digest}
            with spans.child_span("download", spans.Kind.INTERNAL, about) as span:
                await self._fetch(download, fetch)
                if span is not None:
                    span.add({"millpond.bytes": download.written})
        except ContentMismatch as error:
            self._content.faults.report_mismatch(error, fetch.target, fetch.digest, download.place)
            failure = error
        except RegistryError as error:
            failure = error
        except StorageError as error:
            self._content.faults.count_error(error)
            key = f"{fetch.target} {fetch.digest}"
            await self._unfit.set(key, value=True, ttl=UNFIT_SECONDS)
            failure = error
        except Exception:
            log.exception("a download failed unexpectedly", digest=fetch.digest)
            failure = RegistryError("internal error")
        finally:
            self._end(download, failure)

    def _end(self, download: Download, failure: Exception) -> None:
        self._retire(download)
        download.fail(failure)
        download.release()

    def _task_ended(self, download: Download) -> None:
        """End a download whose task was cancelled before its first step: nothing of it has run."""
        del self._tasks[download]
        if download.failure is None and not download.is_proven:
            self._end(download, _cancelled())
        for ended in self.on_ended:
            ended(download)

    def _drop(self, download: Download) -> None:
        task = self._tasks.get(download)
        if task is not None:
            log.info("download dropped", digest=download.digest, bytes=download.written)
            self._retire(download)
            task.cancel()

    def _retire(self, download: Download) -> None:
        """Let the next request for this digest begin anew.

        A dropped download ends after its successor has begun, and must not retire that one.
        """
        if self.live(download.target, download.digest) is download:
            del self._live[download.target.upstream, download.digest]


def _cancelled() -> UpstreamUnavailable:
    return UpstreamUnavailable("the download was cancelled")
