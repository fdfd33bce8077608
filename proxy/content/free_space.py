"""Asks the file system for its free space, and caches the answer for a moment."""

import time
from collections.abc import Callable
from typing import Final

import structlog

from proxy.core.errors import StorageError
from proxy.storage.disk import DiskStore

FRESH_SECONDS: Final = 1.0
"""Seconds for which an answer is used: on a network file system each query takes time."""

FRESH_BYTES: Final = 1024 * 1024
"""Disk bytes that may be promised before the next question.

Other programs write to the same file system. Within a second a fast download would fill what they
left, so the age of the answer alone does not keep ``min_free`` free.
"""

log = structlog.get_logger(__name__)


class FreeSpace:
    """The free space of the cache's file system."""

    def __init__(self, store: DiskStore, on_error: Callable[[], None]) -> None:
        """``on_error`` is called whenever the file system gives no answer."""
        self._store = store
        self._on_error = on_error
        self._free: int | None = None
        self._used = 0
        self._promised = 0
        self._asked_at = float("-inf")

    def expect(self, more: int) -> None:
        """Record that the cache is about to reserve ``more`` disk bytes."""
        self._promised += more
        if self._promised > FRESH_BYTES:
            self.expire()
            self._promised = more

    def expire(self) -> None:
        """Make ``total`` ask again."""
        self._asked_at = float("-inf")

    def total(self, occupied: Callable[[], int]) -> int | None:
        """Return the sum of the cache and the free space in disk bytes.

        ``occupied`` returns the disk bytes that the cache has really written by now. The sum stays
        the same while only the cache writes and deletes. Returns None if the file system gives no
        answer.
        """
        if time.monotonic() - self._asked_at > FRESH_SECONDS:
            self._asked_at = time.monotonic()
            try:
                self._free = self._store.free()
            except StorageError as error:
                self._on_error()
                log.warning("free space unknown", error=str(error))
                self._free = None
            self._used = occupied()
        return None if self._free is None else self._used + self._free
