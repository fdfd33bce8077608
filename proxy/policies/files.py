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
    """The parsed content of a file. While the file cannot be read, its last content counts."""

    def __init__(self, path: Path, parse: Callable[[bytes], Value]) -> None:
        """Read the file. ``parse`` raises ``ValueError``. Raises ``ConfigError``."""
        self.path = path
        self._parse = parse
        self._failed: tuple[int, ...] | None = None
        try:
            self._stamp = _stamp(path)
            self.value = parse(_read(path))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None

    def refresh(self) -> bool:
        """Read the file if it has changed; return True if its content is another. Blocks."""
        try:
            stamp = _stamp(self.path)
            if stamp in (self._stamp, self._failed):
                return False
            self._failed = stamp
            value = self._parse(_read(self.path))
        except (OSError, ValueError) as error:
            log.warning("a file of policies cannot be read", file=str(self.path), error=str(error))
            return False
        is_new = value != self.value
        self._stamp, self._failed, self.value = stamp, None, value
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
