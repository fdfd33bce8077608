"""Files of users and tokens: read again when they change, and written atomically."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from proxy.core.errors import ConfigError
from proxy.runtime.executors import in_thread

MAX_BYTES: Final = 16 * 1024 * 1024
CHECK_SECONDS: Final = 0.1
"""A changed file takes effect after at most this time."""

Value = TypeVar("Value")
_Stamp = tuple[int, int, int]

log = structlog.get_logger(__name__)


class WatchedFile(Generic[Value]):
    """The parsed content of a file. ``parse`` gets the text and raises ``ConfigError``.

    If the file becomes invalid or disappears, the last valid content stays in force and the error
    is logged: a wrong edit must not lock all users out.
    """

    def __init__(self, path: Path, parse: Callable[[str, Path], Value]) -> None:
        """Read the file. Raises ``ConfigError``."""
        self.path = path
        self._parse = parse
        self._stamp: _Stamp | None = None
        self._next_check = 0.0
        self._stamp, self.value = self._read()

    def has_changed(self) -> bool:
        """Return True if ``value`` is out of date; looks at most every ``CHECK_SECONDS``."""
        now = time.monotonic()
        if now < self._next_check:
            return False
        is_changed = _stamp(self.path) != self._stamp
        if not is_changed:
            self._next_check = now + CHECK_SECONDS
        return is_changed

    async def reload(self) -> None:
        """Read the file again, if that works."""
        seen = _stamp(self.path)
        try:
            self._stamp, self.value = await in_thread(self._read)
        except ConfigError as error:
            self._stamp = seen
            log.error("file not reloaded, its last content stays in force", error=str(error))
        else:
            log.info("file reloaded", file=str(self.path))

    def _read(self) -> tuple[_Stamp | None, Value]:
        stamp = _stamp(self.path)  # before the content: a change in between is seen later
        return stamp, self._parse(read_text(self.path), self.path)


def read_text(path: Path) -> str:
    """Return the content of a file. Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES} bytes")
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Prevent other commands from changing the file meanwhile. Raises ``ConfigError``."""
    try:
        directory = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically. A new one has mode 0600; an old one keeps owner and mode.

    If ``path`` is a link, its target is replaced. Raises ``ConfigError``.
    """
    path = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                _copy_mode(path, file.fileno())
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).rename(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _copy_mode(path: Path, descriptor: int) -> None:
    """Keep the group that a server runs with, which may read the file that root writes."""
    with suppress(FileNotFoundError):
        old = path.stat()
        with suppress(PermissionError):
            os.fchown(descriptor, old.st_uid, old.st_gid)
        os.fchmod(descriptor, old.st_mode & 0o640)


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
