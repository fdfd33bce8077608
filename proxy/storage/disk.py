"""The store on a local disk: one file for each blob in a ``Directory``.

A blob is written to the spool, verified by the caller, fsynced, renamed, and its directory
fsynced. So a file with a blob's name contains that blob, even after a power cut.
"""

import asyncio
import ctypes
import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from proxy.core.errors import DigestInvalid, StorageError
from proxy.core.names import Digest, parse_digest
from proxy.runtime.executors import Pool, in_thread
from proxy.storage.directory import ALGORITHMS, OPEN_FILE, Directory, remove
from proxy.storage.quarantine import DiskQuarantine

_SCAN_BATCH: Final = 1000
_WRITE: Final = 64 * 1024
"""Bytes of one write call. For longer ones ext4 takes larger pieces of memory (folios), which are
expensive where a hypervisor lends memory: 2 CPU-seconds per GB were measured, instead of 0.2."""

_KEEP_SIZE: Final = 1
_fallocate = getattr(ctypes.CDLL(None), "fallocate", None)  # Linux only

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class DiskBlob:
    """An open blob file: ``size`` in bytes, ``modified_at`` in Unix seconds.

    It stays readable after it has been deleted from the store.
    """

    __slots__ = ("fd", "modified_at", "size")

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.fd = fd
        self.size = status.st_size
        self.modified_at = status.st_mtime

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, fewer at the end. Blocks. Raises ``StorageError``."""
        return _read(self.fd, start, stop, "reading a blob")

    def read_cached(self) -> bytes | None:
        """Return the whole blob from the page cache.

        None if a part is not there, or if the file system cannot tell. Never waits for the disk.
        """
        body = bytearray(self.size)
        try:
            read = os.preadv(self.fd, [body], 0, os.RWF_NOWAIT)
        except OSError:
            return None
        return bytes(body) if read == self.size else None

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class DiskSpool:
    """A file in ``spool/`` that grows while a download runs, private until ``put``."""

    __slots__ = ("_directory", "_on_error", "fd", "name")

    def __init__(
        self, directory: Directory, name: str, size: int | None, on_error: Callable[[], None]
    ) -> None:
        self._directory = directory
        self._on_error = on_error
        self.name: str | None = name
        self.fd = directory.create(name, directory.spool)
        if size:
            try:
                os.posix_fallocate(self.fd, 0, size)
            except OSError:
                self.discard()
                self.close()
                raise

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, fewer at the end. Blocks. Raises ``StorageError``."""
        return _read(self.fd, start, stop, "reading the spool")

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write at ``offset``. Blocks. Raises ``StorageError``."""
        remaining = memoryview(data)
        try:
            if len(remaining) > _WRITE:
                _allocate(self.fd, offset, len(remaining))
            while remaining:
                written = os.pwrite(self.fd, remaining[:_WRITE], offset)
                remaining, offset = remaining[written:], offset + written
        except OSError as error:
            raise StorageError(f"writing to the spool: {error}") from error

    def discard(self) -> None:
        """Remove the file; readers that have it open can continue.

        Called before ``close``. A file that cannot be removed is emptied, and removed at the next
        start.
        """
        if self.name is not None:
            name, self.name = self.name, None
            try:
                remove(name, self._directory.spool)
            except OSError as error:
                log.warning("a spool file cannot be removed", file=name, error=str(error))
                self._on_error()
                with suppress(OSError):
                    os.ftruncate(self.fd, 0)  # uncounted bytes must not take disk space

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class DiskStore:
    """The blobs of a directory that this process has locked."""

    def __init__(self, directory: Directory, on_error: Callable[[], None] = lambda: None) -> None:
        """``on_error`` is called when a spool file cannot be removed."""
        self._directory = directory
        self._on_error = on_error
        self.quarantine: Final = DiskQuarantine(directory)
        self._serial = itertools.count()
        self._deleting: dict[Digest, asyncio.Event] = {}

    def open(self, digest: Digest) -> DiskBlob | None:
        """Return the blob, opened, or None if it is not held. Raises ``StorageError``."""
        if digest in self._deleting:
            return None
        try:
            name, directory = self._place(digest)
            return _opened(os.open(name, OPEN_FILE, dir_fd=directory))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise StorageError(f"opening {digest}: {error}") from error

    async def spool(self, digest: Digest, size: int | None) -> DiskSpool:
        """Return a new spool with ``size`` bytes reserved on the disk. Raises ``StorageError``."""
        name = f"{next(self._serial)}-{digest.partition(':')[2][:16]}"
        made: list[DiskSpool] = []
        try:
            await _in_thread(
                "making a spool file",
                lambda: made.append(DiskSpool(self._directory, name, size, self._on_error)),
                Pool.WRITE,
            )
        except asyncio.CancelledError:
            for spool in made:
                spool.discard()
                spool.close()
            raise
        return made[0]

    async def put(self, digest: Digest, spool: DiskSpool) -> None:
        """Make a *verified* spool the blob ``digest``: durable first, then visible.

        Waits for a deletion of the same digest. Raises ``StorageError``.
        """
        while (deletion := self._deleting.get(digest)) is not None:
            await deletion.wait()
        await _in_thread(f"storing {digest}", lambda: self._put(digest, spool), Pool.SYNC)

    def begin_deletion(self, digests: list[Digest]) -> None:
        """Stop holding these at once; ``delete`` must follow."""
        for digest in digests:
            self._deleting.setdefault(digest, asyncio.Event())

    async def delete(self, digests: list[Digest]) -> list[Digest]:
        """Unlink blobs; return those that could not be. Open ones stay readable."""
        self.begin_deletion(digests)
        try:
            return await in_thread(lambda: self._unlink(digests), Pool.WRITE)
        finally:
            for digest in digests:
                if (deletion := self._deleting.pop(digest, None)) is not None:
                    deletion.set()

    async def scan(self) -> AsyncIterator[list[tuple[Digest, int, float]]]:
        """Yield batches of (digest, size in bytes, modification time). Raises ``StorageError``."""
        entries = self._entries()
        while batch := await _in_thread(
            "listing blobs", lambda: list(itertools.islice(entries, _SCAN_BATCH)), Pool.UPKEEP
        ):
            yield batch

    def free(self) -> int:
        """Return the bytes that this user may still write. Raises ``StorageError``."""
        try:
            status = os.statvfs(self._directory.fd)
        except OSError as error:
            raise StorageError(f"asking the file system: {error}") from error
        return status.f_bavail * status.f_frsize

    def _put(self, digest: Digest, spool: DiskSpool) -> None:
        if spool.name is None:
            raise StorageError(f"storing {digest}: the spool has been discarded")
        name, directory = self._place(digest)
        os.fsync(spool.fd)
        os.rename(spool.name, name, src_dir_fd=self._directory.spool, dst_dir_fd=directory)
        spool.name = None
        try:
            os.fsync(directory)
        except OSError:
            remove(name, directory)
            raise

    def _unlink(self, digests: list[Digest]) -> list[Digest]:
        failed = []
        for digest in digests:
            try:
                remove(*self._place(digest))
            except OSError as error:
                log.warning("a blob cannot be deleted", digest=digest, error=str(error))
                failed.append(digest)
        return failed

    def _place(self, digest: Digest) -> tuple[str, int]:
        """Return a blob's file name, and the descriptor of its directory."""
        algorithm, _, encoded = digest.partition(":")
        return encoded, self._directory.blobs[algorithm]

    def _entries(self) -> Iterator[tuple[Digest, int, float]]:
        for algorithm in ALGORITHMS:
            with os.scandir(self._directory.blobs[algorithm]) as entries:
                for entry in entries:
                    try:
                        digest = parse_digest(f"{algorithm}:{entry.name}")
                        status = entry.stat(follow_symlinks=False)
                    except (DigestInvalid, FileNotFoundError):
                        continue
                    if entry.is_file(follow_symlinks=False):
                        yield digest, status.st_size, status.st_mtime


def _read(fd: int, start: int, stop: int, doing: str) -> bytes:
    """Return bytes of a file, as far as they can be read; raises if none can."""
    read = bytearray()
    try:
        while chunk := os.pread(fd, stop - start - len(read), start + len(read)):
            if len(chunk) == stop - start:  # nearly every call
                return chunk
            read += chunk
            if len(read) == stop - start:
                break
    except OSError as error:
        if not read:
            raise StorageError(f"{doing}: {error}") from error
    return bytes(read)


def _allocate(fd: int, offset: int, length: int) -> None:
    """Allocate the blocks of the next writes at once: one by one they cost ext4 more CPU time.

    A failure is ignored, because the write itself fails then. ``os.posix_fallocate`` would write
    every block on a file system that cannot do it.
    """
    if _fallocate is not None:
        _fallocate(fd, _KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length))


def _opened(fd: int) -> DiskBlob:
    try:
        return DiskBlob(fd)
    except OSError:
        os.close(fd)
        raise


async def _in_thread(what: str, work: Callable[[], Result], pool: Pool) -> Result:
    try:
        return await in_thread(work, pool)
    except OSError as error:
        raise StorageError(f"{what}: {error}") from error
