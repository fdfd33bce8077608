"""An append-only file of lines that tolerates full disks, rotation and crashes."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

MODE: Final = 0o600
"""Of a new file; an existing one keeps its mode."""


class AppendFile:
    """A file of lines; above ``max_size`` bytes it is renamed to ``….1`` and begun anew.

    Never splits a line: bytes of a line that did not fit are cut off, and the line is written again
    later. A last line that is incomplete after a crash, or that cannot be cut off, gets a line end.
    """

    def __init__(self, path: Path, max_size: int | None = None) -> None:
        self._path = path
        self._max_size = max_size
        self._fd: int | None = None
        self._is_torn = False

    def open(self) -> None:
        """Open or create the file. Raises ``OSError``; a file that was open stays so then."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self._path, flags, MODE)
        try:
            end = os.lseek(fd, 0, os.SEEK_END)
            is_torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
        except OSError:  # a device or a pipe
            os.close(fd)
            raise
        self.close()
        self._fd, self._is_torn = fd, is_torn

    def write(self, lines: list[bytes]) -> int:
        """Write whole lines; return how many could be written. Raises ``OSError`` if none."""
        if self._fd is None:
            self.open()
        assert self._fd is not None
        if self._max_size is not None and self._is_too_large(sum(map(len, lines))):
            with contextlib.suppress(FileNotFoundError):  # renamed before, but not opened
                self._path.replace(f"{self._path}.1")
            self.open()
        before = b"\n" if self._is_torn else b""
        sent = os.write(self._fd, before + b"".join(lines)) - len(before)
        self._is_torn = False
        for count, line in enumerate(lines):
            if sent < len(line):
                self._cut(sent)
                if count == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return count
            sent -= len(line)
        return len(lines)

    def close(self) -> None:
        """Close the file if it is open."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _is_too_large(self, more: int) -> bool:
        assert self._fd is not None
        assert self._max_size is not None
        size = os.fstat(self._fd).st_size
        return size > 0 and size + more > self._max_size

    def _cut(self, count: int) -> None:
        """Remove the last bytes, which begin a line; not possible in an append-only file."""
        assert self._fd is not None
        if count <= 0:
            return
        self._is_torn = True
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - count)
            self._is_torn = False
