"""Brings bytes of a file into the page cache, in a thread.

``sendfile`` and ``read`` block the event loop, and every client with it, while the disk is read.
Checking whether bytes are cached takes a microsecond; only bytes that are not are read ahead.
"""

import errno
import os
from contextlib import suppress
from typing import Final

from proxy.runtime.executors import Pool, in_thread

STEP: Final = 128 * 1024
"""Bytes between two probes. The kernel reads ahead, and evicts, in units of about that."""

AHEAD: Final = 8 * 1024 * 1024
"""Bytes that the kernel is told to fetch while the first of them are being sent."""

_CHUNK: Final = 256 * 1024
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


async def load(fd: int, start: int, stop: int, end: int) -> None:
    """Return when bytes ``start`` to ``stop`` can be read without waiting for the disk.

    The caller will read the bytes up to ``end`` next. Raises ``OSError``.
    """
    if not is_cached(fd, start, stop):
        await in_thread(lambda: _read(fd, start, stop, end), Pool.STREAM)


def is_cached(fd: int, start: int, stop: int) -> bool:
    """Return True if samples of these bytes are all in the page cache.

    Also True where the file system does not support the question. Raises ``OSError``.
    """
    buffers = [bytearray(1)]
    try:
        for offset in (*range(start, stop, STEP), stop - 1):
            os.preadv(fd, buffers, offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return True
        raise
    return True


def share(fd: int, size: int) -> float:
    """Return which share of samples of the first bytes of a file is in the page cache.

    0 where the file system does not support the question. Raises nothing.
    """
    buffers, offsets = [bytearray(1)], range(0, size, STEP)
    cached = 0
    for offset in offsets:
        with suppress(OSError):
            cached += os.preadv(fd, buffers, offset, os.RWF_NOWAIT)
    return cached / len(offsets) if offsets else 1.0


def fill(fd: int, size: int) -> None:
    """Bring the first bytes of a file into the page cache. Blocks. Raises ``OSError``."""
    _read(fd, 0, size, size)


def forget(fd: int, start: int, stop: int) -> None:
    """Let the kernel evict these bytes from the page cache. Raises ``OSError``."""
    os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)


def _read(fd: int, start: int, stop: int, end: int) -> None:
    os.posix_fadvise(fd, start, min(end - start, AHEAD), os.POSIX_FADV_WILLNEED)
    buffer = [bytearray(min(_CHUNK, stop - start))]
    while start < stop:
        read = os.preadv(fd, buffer, start)
        if not read:
            return
        start += read
