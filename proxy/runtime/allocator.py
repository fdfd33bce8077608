"""Makes glibc return large freed buffers to the system.

glibc maps a large buffer separately and unmaps it when it is freed. After the first such free it
takes buffers of that size from its arenas instead: threads have several arenas, and these return
little. After many concurrent large manifests the process would keep several times the memory that
it uses.
"""

import ctypes
from contextlib import suppress
from typing import Final

MAPPED: Final = 1280 * 1024
"""Bytes. Buffers of this size and more are always mapped; pieces of blobs have at most 1 MiB."""

TRIMMED: Final = 4 * 1024 * 1024
"""Bytes that may stay free at the end of an arena."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def return_large_buffers() -> None:
    """Set glibc's thresholds (mallopt(3)), which also stops it from raising them.

    Does nothing with another C library.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED)
        mallopt(_M_TRIM_THRESHOLD, TRIMMED)
