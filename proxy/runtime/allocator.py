"""How the C library keeps freed memory.

glibc maps a large buffer by itself and returns it to the system when it is freed. Once that has
happened, it takes buffers of that size from its arenas instead, of which threads have several, and
those return little. After a crowd of long manifests the process would stay several times as large
as what it holds.
"""

import ctypes
from contextlib import suppress
from typing import Final

MAPPED: Final = 1280 * 1024
"""Bytes. Buffers of that size and more are always mapped; blobs pass in pieces of up to 1 MiB."""

TRIMMED: Final = 4 * 1024 * 1024
"""Bytes. So many may be free at an end of an arena."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def return_large_buffers() -> None:
    """Have freed large buffers go back to the system (mallopt(3)); nothing where there is no glibc.

    To set the thresholds also keeps them from growing.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED)
        mallopt(_M_TRIM_THRESHOLD, TRIMMED)
