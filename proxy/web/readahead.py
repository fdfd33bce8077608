"""Brings what is about to be sent into the page cache, in a thread.

``sendfile`` waits for the disk, and with it the loop and everybody else. To ask whether bytes are
in the page cache costs a microsecond; only what is not there is read ahead.
"""

import errno
import os
from typing import Final

from proxy.runtime.executors import Pool, in_thread

STEP: Final = 128 * 1024
"""Bytes between two probes. The kernel reads ahead, and forgets, in stretches of about that."""

AHEAD: Final = 8 * 1024 * 1024
"""Bytes that the disk is told to fetch while the first of them are being sent."""

_CHUNK: Final = 256 * 1024
_UNKNOWING: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


async def warm(fd: int, start: int, stop: int, end: int) -> None:
    """Return when bytes ``start`` to ``stop`` can be sent without waiting for the disk.

    Up to ``end`` will be wanted next. Raises ``OSError``.
    """
    if not is_warm(fd, start, stop):
        await in_thread(lambda: _read(fd, start, stop, end), Pool.STREAM)


def is_warm(fd: int, start: int, stop: int) -> bool:
    """Tell whether bytes are in the page cache, as far as samples of them tell.

    True as well where the file system cannot say. Raises ``OSError``.
    """
    buffers = [bytearray(1)]
    try:
        for offset in (*range(start, stop, STEP), stop - 1):
            os.preadv(fd, buffers, offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNKNOWING:
            return True
        raise
    return True


def _read(fd: int, start: int, stop: int, end: int) -> None:
    os.posix_fadvise(fd, start, min(end - start, AHEAD), os.POSIX_FADV_WILLNEED)
    buffer = [bytearray(min(_CHUNK, stop - start))]
    while start < stop:
        read = os.preadv(fd, buffer, start)
        if not read:
            return
        start += read
