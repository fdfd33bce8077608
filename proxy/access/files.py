"""Files of users and tokens: read as text, and written atomically by one command at a time."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from proxy.core.errors import ConfigError
from proxy.runtime.watched_file import read_bytes


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ``ConfigError``."""
    return decoded(read_bytes(path), path)


def decoded(content: bytes, path: Path) -> str:
    """Return the content of a file as text. Raises ``ConfigError``."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None


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
