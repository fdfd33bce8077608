"""A file whose content is parsed, and read again when it changes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import structlog

from proxy.core.errors import ConfigError

MAX_BYTES: Final = 16 * 1024 * 1024
CHECK_SECONDS: Final = 0.1
"""A file is looked at once in this time."""

Value = TypeVar("Value")

log = structlog.get_logger(__name__)


class _Stamp(NamedTuple):
    """What changes with a file's content."""

    inode: int
    modified: int
    size: int


class WatchedFile(Generic[Value]):
    """The parsed content of a file.

    If the file becomes invalid or disappears, the last valid content stays in force and the error
    is logged: a wrong edit must neither lock everybody out nor let everything in.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], Value]) -> None:
        """Read the file. ``parse`` raises ``ValueError`` or ``ConfigError``.

        Raises ``ConfigError``.
        """
        self.path = path
        self._parse = parse
        self._next_check = 0.0
        self._read = self._seen = _stamp(path)  # before the content: a later change is seen
        self.value = self._parsed()

    def has_changed(self) -> bool:
        """Return True if ``refresh`` has something to read.

        A file that was replaced is complete. One that is written in place may be half written, so
        its change counts once two looks have seen the same.
        """
        now = time.monotonic()
        if now < self._next_check:
            return False
        stamp, seen = _stamp(self.path), self._seen
        self._seen = stamp
        if stamp != self._read and (stamp == seen or _is_other(stamp, self._read)):
            return True
        self._next_check = now + CHECK_SECONDS
        return False

    def refresh(self) -> bool:
        """Read the file if it has changed; return True if its content is another. Blocks."""
        if not self.has_changed():
            return False
        self._read, before = _stamp(self.path), self.value
        try:
            self.value = self._parsed()
        except ConfigError as error:
            log.error("file not reloaded, its last content stays in force", error=str(error))
            return False
        log.info("file reloaded", file=str(self.path))
        return self.value != before

    def _parsed(self) -> Value:
        try:
            return self._parse(read_bytes(self.path))
        except ValueError as error:
            raise ConfigError(f"{self.path}: {error}") from None


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises ``ConfigError``, also above ``MAX_BYTES``."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes")
    return content


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _Stamp(found.st_ino, found.st_mtime_ns, found.st_size)


def _is_other(one: _Stamp | None, other: _Stamp | None) -> bool:
    """Return True if these are two files, or one of them is missing."""
    return one is None or other is None or one.inode != other.inode
