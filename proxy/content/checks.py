"""Hashes held files again: to adopt a file without a row, and to verify what is held."""

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import structlog

from proxy.core.errors import StorageError, is_disk_error
from proxy.core.names import Digest, DigestVerifier
from proxy.core.records import BlobRecord
from proxy.runtime.executors import Pool, in_thread
from proxy.storage import BlobFile, BlobStore

CHUNK: Final = 1024 * 1024

Pace = Callable[[int], Awaitable[None]]
"""Gets the bytes of each step, and returns when the next step may begin."""

Read = Callable[[int, int, int], bytes]
"""Reads as ``os.pread`` does: descriptor, bytes, offset."""

log = structlog.get_logger(__name__)


class Verdict(NamedTuple):
    """The result of a check: what is wrong, None for nothing, and the bytes that were hashed.

    ``size`` is None if the content was not hashed, and nothing can be said if both are None.
    """

    problem: dict[str, Any] | None
    size: int | None


async def check(store: BlobStore, record: BlobRecord, pace: Pace, read: Read) -> Verdict:
    """Hash held content and compare it with its digest."""
    file: BlobFile | None = None
    try:
        file = store.open(record.digest)
        if file is None:
            return Verdict({"reason": "its file is missing"}, None)
        verifier, size = await hashed(file, record.digest, pace, read), file.size
    except (OSError, StorageError) as error:
        if not is_disk_error(error):
            log.warning("content could not be verified", digest=record.digest, error=str(error))
            return Verdict(None, None)
        text = f"it cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        return Verdict({"reason": text}, None)
    finally:
        if file is not None:
            file.close()
    if verifier.holds:
        return Verdict(None, size)
    differs = {"size": record.size, "size_found": size, "digest_found": verifier.found}
    return Verdict({"reason": "its bytes are not its name"} | differs, size)


async def hashed(file: BlobFile, digest: Digest, pace: Pace, read: Read) -> DigestVerifier:
    """Return a verifier that has got all bytes of a file. Raises ``OSError``."""
    verifier, offset = DigestVerifier(digest), 0

    def step() -> int:
        chunk = read(file.fd, CHUNK, offset)
        verifier.take(chunk)
        return len(chunk)

    while size := await in_thread(step, Pool.UPKEEP):
        offset += size
        await pace(size)
    return verifier


async def at_once(_: int) -> None:
    """Go on with the next step at once."""


def read(fd: int, count: int, offset: int) -> bytes:
    """Return bytes of a file. Raises ``OSError``."""
    return os.pread(fd, count, offset)


def read_uncached(fd: int, count: int, offset: int) -> bytes:
    """Return bytes of a file, which then leave the page cache. Raises ``OSError``."""
    chunk = os.pread(fd, count, offset)
    os.posix_fadvise(fd, offset, len(chunk), os.POSIX_FADV_DONTNEED)
    return chunk
