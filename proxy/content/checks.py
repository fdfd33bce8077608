"""Hashes stored bytes: of downloads, of files without a row, and of held content."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

import structlog

from proxy.core.errors import StorageError, is_disk_error
from proxy.core.names import Digest, DigestVerifier
from proxy.core.records import BlobRecord
from proxy.runtime import page_cache
from proxy.runtime.executors import Pool, in_thread
from proxy.storage.disk import DiskBlob, DiskSpool, DiskStore

CHUNK: Final = 1024 * 1024
_READ: Final = 256 * 1024
"""Bytes that a processor's second-level cache holds."""

Pace = Callable[[int], Awaitable[None]]
"""Gets the bytes of each step, and returns when the next step may begin."""

After = Callable[[DiskBlob, int, int], None]
"""Gets the range of bytes that has just been read."""

log = structlog.get_logger(__name__)


class Verdict(NamedTuple):
    """The result of a check: the fault, None without one, and the number of hashed bytes.

    ``size`` is None if the content was not hashed; the result is unknown if both are None.
    """

    problem: dict[str, Any] | None
    size: int | None


async def check(store: DiskStore, record: BlobRecord, pace: Pace, after: After) -> Verdict:
    """Hash held content and compare it with its digest."""
    try:
        file = store.open(record.digest)
    except StorageError as error:
        return _unreadable(record.digest, error, str(error))
    if file is None:
        return Verdict({"reason": "its file is missing"}, None)
    try:
        verifier, size = await hashed(file, record.digest, pace, after), file.size
    except (OSError, StorageError) as error:
        cause = error.__cause__ or error
        reason = f"it cannot be read: {getattr(cause, 'strerror', cause)}"
        return _unreadable(record.digest, error, reason)
    finally:
        file.close()
    if verifier.is_valid:
        return Verdict(None, size)
    differs = {"size": record.size, "size_found": size, "digest_found": verifier.actual}
    return Verdict({"reason": "its bytes are not its name"} | differs, size)


def _unreadable(digest: Digest, error: OSError | StorageError, reason: str) -> Verdict:
    """Return a verdict against the content only if the disk reports the error."""
    if is_disk_error(error):
        return Verdict({"reason": reason}, None)
    log.warning("content could not be verified", digest=digest, error=str(error))
    return Verdict(None, None)


def hash_stored(
    verifier: DigestVerifier, source: DiskBlob | DiskSpool, start: int, stop: int
) -> None:
    """Feed bytes ``start`` to ``stop`` to ``verifier``. Blocks. Raises ``StorageError``."""
    while start < stop:
        chunk = source.read(start, min(start + _READ, stop))
        if not chunk:
            raise StorageError(f"the file ends at {start} instead of {stop} bytes")
        verifier.update(chunk)
        start += len(chunk)


async def hashed(file: DiskBlob, digest: Digest, pace: Pace, after: After) -> DigestVerifier:
    """Return a verifier that has got all bytes of a blob. Raises ``OSError``, ``StorageError``."""
    verifier, start = DigestVerifier(digest), 0
    while start < file.size:
        stop = min(start + CHUNK, file.size)
        await in_thread(partial(hash_stored, verifier, file, start, stop), Pool.UPKEEP)
        after(file, start, stop)
        await pace(stop - start)
        start = stop
    return verifier


async def no_pause(_: int) -> None:
    """Go on with the next step at once."""


def keep_cached(file: DiskBlob, start: int, stop: int) -> None:
    """Leave the bytes in the page cache."""


def uncache(file: DiskBlob, start: int, stop: int) -> None:
    """Drop the bytes from the page cache."""
    page_cache.forget(file.fd, start, stop)
