"""The read-only cache directory of another Millpond, such as a mounted removable disk.

Its ``index.json`` says which repository holds which image; only those images, with what they list,
are given, and only under those names. Nothing is written, no link is followed, and no descriptor
stays open between two reads, so the disk can be unmounted at any time.

A dead network mount lets system calls hang. So each piece of work runs in a separate thread, which
is left behind after ``HANG_SECONDS``; the directory is then skipped like a missing one.
"""

import asyncio
import errno
import os
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from cachetools import LRUCache

from proxy.core import manifests
from proxy.core.errors import BlobUnknown, StorageError, UpstreamUnavailable
from proxy.core.names import Digest, Tag, Target, matches
from proxy.core.oci_layout import entries, named_image
from proxy.core.records import Descriptor
from proxy.core.sources import Body, Piece, Place, Priority
from proxy.runtime.executors import in_thread_if_large, start_detached
from proxy.storage.disk import DiskBlob

CHECK_SECONDS: Final = 1.0
"""Time for which ``index.json`` is not checked again."""

RETRY_SECONDS: Final = 10.0
"""Time for which the directory is skipped after a failure."""

HANG_SECONDS: Final = 5.0
"""A step that takes longer counts as a failure of the directory."""

MAX_INDEX: Final = 512 * 1024 * 1024
"""Bytes of ``index.json``, which is read whole: that of a million images has 400 MB."""

_CONCURRENCY: Final = 4
_MAX_HANGING: Final = 16
"""With this number of abandoned threads, the directory is skipped until one of them returns."""

_STEP: Final = 1024 * 1024
_MAX_DEPTH: Final = 4
_MAX_REPOSITORIES: Final = 1000
_MAX_REJECTED: Final = 10_000
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class _Names(NamedTuple):
    """The names in one version of ``index.json``; ``listed`` is filled on demand by repository."""

    stamp: tuple[int, ...]
    tags: dict[tuple[Target, Tag], Descriptor]
    roots: dict[Target, set[Digest]]
    listed: LRUCache[Target, set[Digest]]


class _Index(NamedTuple):
    """One version of ``index.json``, not parsed yet: a long one may take longer than a step."""

    stamp: tuple[int, ...]
    content: bytes


class FallbackDirectory:
    """A source of blobs, manifests and tags. A missing directory is skipped, and logged once.

    Content may be private, so it is linked only to the repositories that ``index.json`` names.
    """

    place: Final = Place.DISK

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._names: _Names | None = None
        self._check_at = self._skip_until = float("-inf")
        self._problem: str | None = None
        self._rejected: LRUCache[Digest, None] = LRUCache(_MAX_REJECTED)
        self._checking = asyncio.Lock()
        self._steps = asyncio.Semaphore(_CONCURRENCY)
        self._hanging = 0

    def __repr__(self) -> str:
        return f"<FallbackDirectory {self.path}>"

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return a blob from ``offset`` on. Raises ``BlobUnknown``, ``UpstreamUnavailable``."""
        size = await self.blob_size(target, digest)
        return _FileBody(partial(self._read, digest), offset, size)

    async def blob_size(self, target: Target, digest: Digest) -> int:
        """Return a blob's size in bytes. Raises ``BlobUnknown``, ``UpstreamUnavailable``."""

        def size_of(root: int) -> int | None:
            with _blob(root, digest) as blob:
                return None if blob is None else blob.size

        size = None
        if await self._lists(target, digest):
            size = await self._step(size_of)
        if size is None:
            raise BlobUnknown(f"{target}@{digest} is not in a fallback directory")
        return size

    def reject(self, digest: Digest) -> None:
        """Do not serve a digest until ``index.json`` changes: its bytes were wrong."""
        log.error("wrong bytes in a fallback directory", path=str(self.path), digest=digest)
        self._rejected[digest] = None

    async def manifest(self, target: Target, digest: Digest) -> bytes | None:
        """Return a proven manifest, None if there is none. Handles every error of the disk."""
        try:
            if not await self._lists(target, digest):
                return None
            body = await self._step(lambda root: _read_manifest(root, digest))
        except UpstreamUnavailable:
            return None
        if body is None or await in_thread_if_large(len(body), lambda: matches(digest, body)):
            return body
        self.reject(digest)
        return None

    async def tag(self, target: Target, tag: Tag) -> Descriptor | None:
        """Return the descriptor of a tag, None if ``index.json`` does not name it."""
        async with self._checking:
            names = await self._current()
        return None if names is None else names.tags.get((target, tag))

    async def _read(self, digest: Digest, start: int, stop: int) -> bytes:
        """Return some bytes of a blob. Raises ``UpstreamUnavailable``."""

        def read(root: int) -> bytes:
            with _blob(root, digest) as blob:
                data = b"" if blob is None else blob.read(start, stop)
            if not data:
                raise StorageError("a file became shorter")
            return data

        return await self._step(read)

    async def _lists(self, target: Target, digest: Digest) -> bool:
        """Return True if one of the repository's images lists a digest that is not rejected."""
        async with self._checking:
            names = await self._current()
            if names is None or target not in names.roots or digest in self._rejected:
                return False
            if target not in names.listed:
                names.listed[target] = await self._tree(names.roots[target])
            return digest in names.listed[target]

    async def _current(self) -> _Names | None:
        """Return the current names in ``index.json``, None if it cannot be read."""
        if time.monotonic() < self._check_at:
            return self._names
        stamp = None if self._names is None else self._names.stamp
        try:
            changed = await self._in_time(lambda root: _look(root, stamp))
        except OSError as error:
            self._skip(error.strerror or str(error))
            return None
        if changed is not None:
            self._names = await in_thread_if_large(len(changed.content), partial(_names, changed))
            self._rejected.clear()
        self._check_at = time.monotonic() + CHECK_SECONDS
        if self._problem is not None:
            log.info("a fallback directory is used again", path=str(self.path))
            self._problem = None
        return self._names

    async def _tree(self, images: Iterable[Digest]) -> set[Digest]:
        """Return images and their content. Raises ``UpstreamUnavailable``.

        A manifest whose bytes are not its digest lists nothing: it could name others' content.
        """
        blobs: set[Digest] = set()

        async def manifests_below(digest: Digest) -> list[Digest]:
            children = await self._step(partial(_children, digest=digest))
            blobs.update(blob.digest for blob in children.blobs)
            return [child.digest for child in children.manifests]

        nodes = manifests.walk(images, manifests_below, max_depth=_MAX_DEPTH)
        return blobs | {node.digest async for node in nodes}

    async def _step(self, work: Callable[[int], Result]) -> Result:
        """Return the result of ``work`` on the directory. Raises ``UpstreamUnavailable``."""
        try:
            return await self._in_time(work)
        except (OSError, StorageError) as error:
            raise self._failed(error) from error

    async def _in_time(self, work: Callable[[int], Result]) -> Result:
        """Return the result of ``work`` on the directory. Raises ``OSError``, ``StorageError``."""

        def opened() -> Result:
            with _opened(self.path, _DIRECTORY) as root:
                return work(root)

        async with self._steps:
            if time.monotonic() < self._skip_until or self._hanging >= _MAX_HANGING:
                raise TimeoutError("it is skipped")
            running = asyncio.wrap_future(start_detached(opened, f"fallback {self.path}"))
            try:
                await asyncio.wait([running], timeout=HANG_SECONDS)
            finally:
                if not running.done():
                    self._hanging += 1
                    running.add_done_callback(self._returned)
            if not running.done():
                self._skip("it does not answer")
                raise TimeoutError("it does not answer")
            return running.result()

    def _returned(self, step: asyncio.Future[Any]) -> None:
        self._hanging -= 1
        if not step.cancelled():
            step.exception()  # retrieved here, because no task awaits it

    def _skip(self, reason: str) -> None:
        """Skip the directory for a time, and log that unless it was skipped before."""
        self._names = None
        self._skip_until = self._check_at = time.monotonic() + RETRY_SECONDS
        if reason != self._problem:
            log.warning("a fallback directory is skipped", path=str(self.path), reason=reason)
            self._problem = reason

    def _failed(self, error: Exception) -> UpstreamUnavailable:
        """Log a failure with the path, which clients must not see; return the error for them."""
        log.warning("a fallback directory cannot be read", path=str(self.path), reason=str(error))
        return UpstreamUnavailable("a fallback directory cannot be read")


class _FileBody:
    """A blob from a file, from an offset on; ``read`` opens the file for each step."""

    is_public = False
    is_confirmed = True

    def __init__(
        self, read: Callable[[int, int], Awaitable[bytes]], offset: int, size: int
    ) -> None:
        self.size: int | None = size
        self._read = read
        self._offset = offset
        self._end = size

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the bytes in order. Raises ``UpstreamUnavailable``."""
        offset = self._offset
        while offset < self._end:
            data = await self._read(offset, min(offset + _STEP, self._end))
            yield Piece(offset, data)
            offset += len(data)

    async def aclose(self) -> None:
        """Do nothing: no file is open."""


def _look(root: int, known: tuple[int, ...] | None) -> _Index | None:
    """Return ``index.json``, None if it is the known one. Blocks. Raises ``OSError``."""
    with _opened("index.json", _FILE, root) as fd:
        status = os.fstat(fd)
        stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp == known:
            return None
        if status.st_size > MAX_INDEX:
            raise OSError(errno.EFBIG, "index.json is too long")
        with os.fdopen(os.dup(fd), "rb") as file:
            return _Index(stamp, file.read())


def _names(index: _Index) -> _Names:
    names = _Names(index.stamp, {}, {}, LRUCache(_MAX_REPOSITORIES))
    for image in map(named_image, entries(index.content)):
        if image is not None:
            names.roots.setdefault(image.target, set()).add(image.descriptor.digest)
            if image.tag is not None:
                names.tags[image.target, image.tag] = image.descriptor
    return names


def _children(root: int, digest: Digest) -> manifests.Children:
    """Return the children of a manifest, none unless it is proven and understood. Blocks."""
    try:
        body = _read_manifest(root, digest)
    except StorageError:
        body = None
    content = None if body is None or not matches(digest, body) else manifests.read(body)
    return (content and content.children) or manifests.Children()


def _read_manifest(root: int, digest: Digest) -> bytes | None:
    """Return a file that is no longer than a manifest. Blocks."""
    with _blob(root, digest) as blob:
        if blob is None or blob.size > manifests.MAX_SIZE:
            return None
        return blob.read(0, blob.size)


@contextmanager
def _blob(root: int, digest: Digest) -> Iterator[DiskBlob | None]:
    """Open a blob's file, None if there is none. Raises ``OSError``."""
    algorithm, _, name = digest.partition(":")
    below = _DIRECTORY | os.O_NOFOLLOW
    try:
        with _opened("blobs", below, root) as blobs, _opened(algorithm, below, blobs) as directory:
            fd = os.open(name, _FILE, dir_fd=directory)
    except FileNotFoundError:
        yield None
        return
    file = DiskBlob(fd)
    try:
        yield file if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        file.close()


@contextmanager
def _opened(path: Path | str, flags: int, directory: int | None = None) -> Iterator[int]:
    """Open a descriptor for the duration of the context. Raises ``OSError``."""
    fd = os.open(path, flags, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)
