"""Files that rules name, read again when they change."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from proxy.core.errors import ConfigError, DigestInvalid
from proxy.core.names import Digest, parse_digest

MAX_BYTES: Final = 16 * 1024 * 1024

Value = TypeVar("Value")
log = structlog.get_logger(__name__)


class WatchedFile(Generic[Value]):
    """The parsed content of a file. If it cannot be read, its last content remains in force."""

    def __init__(self, path: Path, parse: Callable[[bytes], Value]) -> None:
        """Read the file. ``parse`` raises ``ValueError``. Raises ``ConfigError``."""
        self.path = path
        self._parse = parse
        try:
            self._read = self._seen = _stamp(path)
            self.value = parse(_read(path))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None

    def refresh(self) -> bool:
        """Read a changed file; return True if its content differs. Blocks.

        A change is used once two calls have seen the same file: it may be half written.
        """
        try:
            stamp, seen = _stamp(self.path), self._seen
            self._seen = stamp
            if stamp == self._read or stamp != seen:
                return False
            self._read = stamp
            value = self._parse(_read(self.path))
        except (OSError, ValueError) as error:
            log.warning("a file of policies cannot be read", file=str(self.path), error=str(error))
            return False
        is_new = value != self.value
        self.value = value
        return is_new


def read_digests(text: bytes) -> frozenset[Digest]:
    """Return the digests in a file, one per line. Raises ``ValueError`` for any other line."""
    digests = set()
    for number, line in enumerate(text.decode().splitlines(), 1):
        if word := line.partition("#")[0].strip():
            try:
                digests.add(parse_digest(word))
            except DigestInvalid as error:
                raise ValueError(f"line {number}: {error.message}") from None
    return frozenset(digests)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    return text


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size
