"""Hashes stored bytes: the one loop for downloads, adoption and verification."""

from typing import Final

from proxy.core.errors import StorageError
from proxy.core.names import DigestVerifier
from proxy.storage import Readable

_READ: Final = 256 * 1024
"""Bytes that a processor's second-level cache holds."""


def hash_stored(verifier: DigestVerifier, source: Readable, start: int, stop: int) -> None:
    """Feed bytes ``start`` to ``stop`` to ``verifier``. Blocks. Raises ``StorageError``."""
    while start < stop:
        chunk = source.read(start, min(start + _READ, stop))
        if not chunk:
            raise StorageError(f"the file ends at {start} instead of {stop} bytes")
        verifier.take(chunk)
        start += len(chunk)
