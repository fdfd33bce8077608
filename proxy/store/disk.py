"""The store on a local disk: a valid OCI image layout (image-spec ``image-layout.md``).

``oci-layout``, ``index.json``, ``blobs/<algorithm>/<hex>``, and beside them ``spool/``.
A blob is written to the spool, verified by the caller, fsynced, renamed, and its directory
fsynced: what has a blob's name is that blob, also after a power cut.
"""

import asyncio
import errno
import fcntl
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import structlog

from proxy.errors import ConfigError, DigestInvalid, StorageError, StorageInUse
from proxy.names import Digest, parse_digest
from proxy.store import Spool
from proxy.threads import in_thread

_ALGORITHMS: Final = ("sha256", "sha512")
_SCAN_BATCH: Final = 1000
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class DiskBlob:
    """An open blob file."""

    __slots__ = ("fd", "size")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def read(self) -> bytes:
        """Return all bytes. Raises ``StorageError``."""
        try:
            return os.pread(self.fd, self.size, 0)
        except OSError as error:
            raise StorageError(f"reading a blob: {error}") from error

    def close(self) -> None:
        """Close the file; twice does no harm."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class DiskSpool:
    """A file in ``spool/``."""

    __slots__ = ("fd", "path")

    def __init__(self, path: Path, size: int | None) -> None:
        self.path: Path | None = path
        self.fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        if size:
            try:
                os.posix_fallocate(self.fd, 0, size)
            except OSError:
                self.discard()
                self.close()
                raise

    def write(self, data: bytes, offset: int) -> None:
        """Write at ``offset``; blocks. Raises ``StorageError``."""
        remaining = memoryview(data)
        try:
            while remaining:
                written = os.pwrite(self.fd, remaining, offset)
                remaining, offset = remaining[written:], offset + written
        except OSError as error:
            raise StorageError(f"writing to the spool: {error}") from error

    def discard(self) -> None:
        """Remove the file; readers that have it open are not disturbed."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def close(self) -> None:
        """Close the file; twice does no harm."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class DiskStore:
    """A directory that one process owns for as long as it is open."""

    def __init__(self, root: Path) -> None:
        """Prepare ``root`` and take it; spool leftovers of a killed process are removed.

        Raises ``ConfigError`` when it cannot be written or another process has it.
        """
        self._root = root
        self._blobs = root / "blobs"
        self._spool = root / "spool"
        self._serial = itertools.count()
        self._condemned: dict[Digest, asyncio.Event] = {}
        try:
            self._prepare()
        except OSError as error:
            raise ConfigError(
                f"storage.path: {root} cannot be used: {error.strerror}; "
                "choose a directory that this user may write, with --storage DIR"
            ) from None

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._lock)

    def open(self, digest: Digest) -> DiskBlob | None:
        """Return the blob, opened, or None when it is not held or cannot be opened."""
        if digest in self._condemned:
            return None
        try:
            fd = os.open(self._path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise StorageError(f"opening {digest}: {error}") from error
        return DiskBlob(fd)

    async def spool(self, digest: Digest, size: int | None) -> DiskSpool:
        """Return a new spool with ``size`` bytes reserved on the disk. Raises ``StorageError``."""
        path = self._spool / f"{next(self._serial)}-{digest.partition(':')[2][:16]}"
        made: list[DiskSpool] = []
        try:
            await _in_thread("making a spool file", lambda: made.append(DiskSpool(path, size)))
        except asyncio.CancelledError:
            for spool in made:
                spool.discard()
                spool.close()
            raise
        return made[0]

    async def put(self, digest: Digest, spool: Spool) -> None:
        """Sync the spool, give it the blob's name, sync the directory. Raises ``StorageError``."""
        assert isinstance(spool, DiskSpool)
        while (deletion := self._condemned.get(digest)) is not None:
            await deletion.wait()
        await _in_thread(f"storing {digest}", lambda: self._put(digest, spool))

    def condemn(self, digests: list[Digest]) -> None:
        """Hold these no longer, from this moment; ``delete`` must follow."""
        for digest in digests:
            self._condemned.setdefault(digest, asyncio.Event())

    async def delete(self, digests: list[Digest]) -> list[Digest]:
        """Unlink blobs, open ones go on being readable; return those that could not be."""
        self.condemn(digests)
        try:
            return await in_thread(lambda: self._unlink(digests))
        finally:
            for digest in digests:
                if (deletion := self._condemned.pop(digest, None)) is not None:
                    deletion.set()

    async def scan(self) -> AsyncIterator[list[tuple[Digest, int, float]]]:
        """Yield batches of (digest, size in bytes, modification time). Raises ``StorageError``."""
        entries = self._entries()
        while batch := await _in_thread(
            "listing blobs", lambda: list(itertools.islice(entries, _SCAN_BATCH))
        ):
            yield batch

    def _prepare(self) -> None:
        self._root.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        self._lock = os.open(self._root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StorageInUse(
                f"storage.path: {self._root} is in use by another Millpond; "
                "give each its own directory, with --storage DIR"
            ) from None
        algorithms = [self._blobs / name for name in _ALGORITHMS]
        for directory in (self._spool, self._blobs, *algorithms):
            directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        for leftover in self._spool.iterdir():
            leftover.unlink()
        _write_once(self._root / "oci-layout", {"imageLayoutVersion": "1.0.0"})
        _write_once(self._root / "index.json", {"schemaVersion": 2, "manifests": []})

    def _put(self, digest: Digest, spool: DiskSpool) -> None:
        if spool.path is None:
            raise StorageError(f"storing {digest}: the spool has been discarded")
        path = self._path(digest)
        os.fsync(spool.fd)
        spool.path.rename(path)
        spool.path = None
        try:
            _sync_directory(path.parent)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _unlink(self, digests: list[Digest]) -> list[Digest]:
        failed = []
        for digest in digests:
            try:
                self._path(digest).unlink(missing_ok=True)
            except OSError as error:
                log.warning("a blob cannot be deleted", digest=digest, error=str(error))
                failed.append(digest)
        return failed

    def _path(self, digest: Digest) -> Path:
        algorithm, _, encoded = digest.partition(":")
        return self._blobs / algorithm / encoded

    def _entries(self) -> Iterator[tuple[Digest, int, float]]:
        for algorithm in _ALGORITHMS:
            with os.scandir(self._blobs / algorithm) as entries:
                for entry in entries:
                    try:
                        digest = parse_digest(f"{algorithm}:{entry.name}")
                        status = entry.stat(follow_symlinks=False)
                    except (DigestInvalid, FileNotFoundError):
                        continue
                    if entry.is_file(follow_symlinks=False):
                        yield digest, status.st_size, status.st_mtime


async def _in_thread(what: str, work: Callable[[], Result]) -> Result:
    try:
        return await in_thread(work)
    except OSError as error:
        raise StorageError(f"{what}: {error}") from error


def _write_once(path: Path, document: dict[str, object]) -> None:
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document))
        temporary.chmod(0o640)
        temporary.rename(path)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
