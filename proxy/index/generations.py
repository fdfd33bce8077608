"""Shared memory that tells other processes which facts of the index have changed.

The process that writes the index marks a fact while RAM and file disagree about it, and counts it
as changed once the file has it. Others read facts from the file and keep them with their stamp: a
fact is valid while its stamp is the same, and unknown while it is marked. So no process uses an
older fact than the one that writes.

Facts share slots of the table by their hash: a change may invalidate facts that did not change.
"""

import mmap
import os
from collections.abc import Hashable
from typing import Final
from zlib import crc32

EVERYTHING: Final = "everything"
"""The key of all facts."""

PLACES: Final = 1 << 14
"""Facts by hash. A place has two 32-bit numbers: its marks, and its changes modulo 2^32."""

_EVERYTHING: Final = 2 * PLACES
_SETTINGS: Final = _EVERYTHING + 2
_CHANGES: Final = _SETTINGS + 1
_BYTES: Final = 4 * (_CHANGES + 1)
_MAX: Final = (1 << 32) - 1

Stamp = tuple[int, int]


def place(key: Hashable) -> int:
    """Return the place of a fact, which is the same in every process."""
    if key == EVERYTHING:
        return _EVERYTHING
    return 2 * (crc32(repr(key).encode(errors="surrogatepass")) % PLACES)


class Generations:
    """The table; one process writes it. ``fd`` is an anonymous file that others inherit."""

    def __init__(self, fd: int | None = None) -> None:
        """Create a table, or use that of another process."""
        self.fd: Final = os.memfd_create("millpond-generations") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, _BYTES)
        self._memory: Final = mmap.mmap(self.fd, _BYTES)
        self._numbers: Final = memoryview(self._memory).cast("I")

    def close(self) -> None:
        """Release the memory; other processes keep theirs."""
        self._numbers.release()
        self._memory.close()
        os.close(self.fd)

    def mark(self, key: Hashable) -> None:
        """Mark a fact as unknown to others: the file does not have it yet."""
        self._numbers[place(key)] += 1
        self._count(_CHANGES)

    def unmark(self, key: Hashable) -> None:
        """Count a marked fact as changed: the file has it now."""
        number = place(key)
        self._count(number + 1)
        self._numbers[number] -= 1
        self._count(_CHANGES)

    def stamp(self, place: int) -> Stamp | None:
        """Return the stamp of the facts of a place; None while they are marked."""
        numbers = self._numbers
        if numbers[place] or numbers[_EVERYTHING]:
            return None
        return numbers[place + 1], numbers[_EVERYTHING + 1]

    @property
    def changes(self) -> int:
        """A number that changes whenever any stamp does."""
        return self._numbers[_CHANGES]

    @property
    def file(self) -> int:
        """Changes when the file is replaced by another one."""
        return self._numbers[_EVERYTHING + 1]

    def change_file(self) -> None:
        """Count every fact as changed: the file is another one."""
        self._count(_EVERYTHING + 1)
        self._count(_CHANGES)

    @property
    def settings(self) -> int:
        """The number of the settings in force."""
        return self._numbers[_SETTINGS]

    def change_settings(self) -> int:
        """Put other settings in force, and return their number."""
        self._count(_SETTINGS)
        return self.settings

    def _count(self, number: int) -> None:
        self._numbers[number] = (self._numbers[number] + 1) & _MAX
