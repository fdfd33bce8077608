"""Another directory of Millpond's layout, read only: a disk that somebody carried in and mounted.

Its ``index.json`` says which repository holds which image; only those images, with what they list,
are given, and only under those names. Nothing is written, no link is followed, and no descriptor
stays open between requests, so the disk can be unmounted at any time.
"""

import os
import stat
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple, TypeVar

import structlog
from cachetools import LRUCache

from proxy.core import manifests
from proxy.core.errors import BlobUnknown, StorageError, UpstreamUnavailable
from proxy.core.names import Digest, Tag, Target, matches
from proxy.core.oci_layout import NamedImage, entries, named_image
from proxy.core.records import Descriptor
from proxy.core.sources import Body, Piece, Priority
from proxy.runtime.executors import Pool, in_thread
from proxy.storage.disk import DiskBlob

LOOK_SECONDS: Final = 1.0
"""After a look at ``index.json`` it is believed for so long."""

RETRY_SECONDS: Final = 10.0
"""After a failure the directory is left alone for so long."""

_STEP: Final = 1024 * 1024
_MAX_DEPTH: Final = 4
_MAX_REPOSITORIES: Final = 1000
_MAX_REJECTED: Final = 10_000
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class _Names(NamedTuple):
    """What one version of ``index.json`` says; ``listed`` is filled when a repository is needed."""

    stamp: tuple[int, ...]
    tags: dict[tuple[Target, Tag], Descriptor]
    roots: dict[Target, set[Digest]]
    listed: LRUCache[Target, set[Digest]]


class FallbackDirectory:
    """A source of blobs, manifests and tags. A missing directory is skipped, and logged once.

    Content may be private, so it is linked only to the repositories that ``index.json`` names.
    """

    is_public: Final = False

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path: Final = path
        self._clock = clock
        self._lock = Lock()
        self._names: _Names | None = None
        self._look_at = float("-inf")
        self._problem: str | None = None
        self._rejected: LRUCache[Digest, None] = LRUCache(_MAX_REJECTED)

    def __repr__(self) -> str:
        return f"<FallbackDirectory {self.path}>"

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return a blob from ``offset`` on. Raises ``BlobUnknown``, ``UpstreamUnavailable``."""
        blob = await self._in_thread(lambda: self._listed_blob(target, digest))
        if blob is None:
            raise BlobUnknown(f"{target}@{digest} is not in a fallback directory")
        return _FileBody(blob, offset, self.path)

    async def blob_size(self, target: Target, digest: Digest) -> int:
        """Return a blob's size in bytes. Raises ``BlobUnknown``, ``UpstreamUnavailable``."""
        body = await self.open(target, digest, 0, Priority.PASS_THROUGH)
        await body.aclose()
        assert body.size is not None
        return body.size

    def reject(self, digest: Digest) -> None:
        """Give a digest no more, until ``index.json`` changes: its bytes were wrong."""
        log.error("wrong bytes in a fallback directory", path=str(self.path), digest=digest)
        self._rejected[digest] = None

    async def manifest(self, target: Target, digest: Digest) -> bytes | None:
        """Return a proven manifest, None if it is not there. Survives every error of the disk."""

        def read() -> bytes | None:
            blob = self._listed_blob(target, digest)
            if blob is None:
                return None
            try:
                body = blob.read(0, min(blob.size, manifests.MAX_SIZE))
            finally:
                blob.close()
            if not matches(digest, body):
                self.reject(digest)
                return None
            return body

        try:
            return await self._in_thread(read)
        except UpstreamUnavailable:
            return None

    async def has(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository's content can be had from here."""
        try:
            await self.blob_size(target, digest)
        except (BlobUnknown, UpstreamUnavailable):
            return False
        return True

    async def tag(self, target: Target, tag: Tag) -> Descriptor | None:
        """Return what a tag points to, None if it is not named here."""

        def find() -> Descriptor | None:
            names = self._current()
            return None if names is None else names.tags.get((target, tag))

        return await self._in_thread(find)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        try:
            return await in_thread(work, Pool.FALLBACK)
        except (OSError, StorageError) as error:
            raise _failed(self.path, error) from error

    def _listed_blob(self, target: Target, digest: Digest) -> DiskBlob | None:
        """Return a blob of one of the repository's images, opened. Blocks. Raises ``OSError``."""
        names = self._current()
        if names is None or target not in names.roots or digest in self._rejected:
            return None
        with _opened(self.path, _DIRECTORY) as root:
            if digest not in self._listed(names, target, root):
                return None
            return _opened_blob(root, digest)

    def _current(self) -> _Names | None:
        """Return what ``index.json`` says now, None if it cannot be read. Blocks."""
        with self._lock:
            now = self._clock()
            if now < self._look_at:
                return self._names
            self._look_at = now + LOOK_SECONDS
            try:
                self._look()
            except OSError as error:
                self._names = None
                self._look_at = now + RETRY_SECONDS
                self._report(f"{error.strerror or error}")
            else:
                self._report(None)
            return self._names

    def _look(self) -> None:
        """Read ``index.json`` if it is another one than before. Raises ``OSError``."""
        with _opened(self.path, _DIRECTORY) as root, _opened("index.json", _FILE, root) as fd:
            status = os.fstat(fd)
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if self._names is not None and self._names.stamp == stamp:
                return
            with os.fdopen(os.dup(fd), "rb") as file:
                images = map(named_image, entries(file.read()))
        self._names = _names(stamp, (image for image in images if image is not None))
        self._rejected.clear()

    def _report(self, problem: str | None) -> None:
        """Log a change: the directory can no longer be used, or can be used again."""
        if problem is not None and problem != self._problem:
            log.warning("a fallback directory is skipped", path=str(self.path), reason=problem)
        elif problem is None and self._problem is not None:
            log.info("a fallback directory is used again", path=str(self.path))
        self._problem = problem

    def _listed(self, names: _Names, target: Target, root: int) -> set[Digest]:
        """Return the digests of all that a repository's images list. Blocks."""
        known = names.listed.get(target)
        if known is None:
            known = _tree(root, names.roots[target])
            with self._lock:
                names.listed[target] = known
        return known


class _FileBody:
    """A blob from a file, from an offset on."""

    def __init__(self, blob: DiskBlob, offset: int, path: Path) -> None:
        self.size: int | None = blob.size
        self._blob = blob
        self._offset = offset
        self._path = path

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the bytes in order. Raises ``UpstreamUnavailable``."""
        offset, size = self._offset, self._blob.size
        while offset < size:
            read = partial(self._blob.read, offset, min(offset + _STEP, size))
            try:
                data = await in_thread(read, Pool.FALLBACK)
            except StorageError as error:
                raise _failed(self._path, error) from error
            if not data:
                raise _failed(self._path, "a file became shorter")
            yield Piece(offset, data)
            offset += len(data)

    async def aclose(self) -> None:
        """Close the file. A second call does nothing."""
        self._blob.close()


def _failed(path: Path, reason: object) -> UpstreamUnavailable:
    """Log a failure with the path, which clients must not see; return the error for them."""
    log.warning("a fallback directory cannot be read", path=str(path), reason=str(reason))
    return UpstreamUnavailable("a fallback directory cannot be read")


def _names(stamp: tuple[int, ...], images: Iterable[NamedImage]) -> _Names:
    names = _Names(stamp, {}, {}, LRUCache(_MAX_REPOSITORIES))
    for target, tag, descriptor in images:
        names.roots.setdefault(target, set()).add(descriptor.digest)
        if tag is not None:
            names.tags[target, tag] = descriptor
    return names


def _tree(root: int, images: Iterable[Digest]) -> set[Digest]:
    """Return images and all that they list. Blocks. Raises ``OSError``.

    A manifest whose bytes are not its digest lists nothing: it could name others' content.
    """
    found: set[Digest] = set()
    level = set(images)
    for _ in range(_MAX_DEPTH):
        below: set[Digest] = set()
        for digest in level - found:
            found.add(digest)
            children = _children(root, digest)
            found.update(blob.digest for blob in children.blobs)
            below.update(child.digest for child in children.manifests)
        level = below
    return found | level


def _children(root: int, digest: Digest) -> manifests.Children:
    blob = _opened_blob(root, digest)
    if blob is None:
        return manifests.Children()
    try:
        if blob.size > manifests.MAX_SIZE:
            return manifests.Children()
        body = blob.read(0, blob.size)
    except StorageError:
        return manifests.Children()
    finally:
        blob.close()
    content = manifests.read(body) if matches(digest, body) else None
    return (content.children if content else None) or manifests.Children()


def _opened_blob(root: int, digest: Digest) -> DiskBlob | None:
    """Return a blob file, None if there is none. Raises ``OSError``."""
    algorithm, _, name = digest.partition(":")
    below = _DIRECTORY | os.O_NOFOLLOW
    try:
        with _opened("blobs", below, root) as blobs, _opened(algorithm, below, blobs) as directory:
            fd = os.open(name, _FILE, dir_fd=directory)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return DiskBlob(fd)


@contextmanager
def _opened(path: Path | str, flags: int, directory: int | None = None) -> Iterator[int]:
    """Have a descriptor while the context is open. Raises ``OSError``."""
    fd = os.open(path, flags, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)
