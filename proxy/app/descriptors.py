"""Shares the file descriptors that this process may have between clients, registries and files."""

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

OWN: Final = 80
"""Descriptors for the index, the log, listening sockets and refused connections."""

PER_CLIENT: Final = 4
"""A client's connection, the file that it is sent, a copy of its socket for ``sendfile``, and a
connection of its own to a registry, for a manifest."""

PER_DOWNLOAD: Final = 4
"""Connection and spool, twice: as many downloads again may begin beyond the bound."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """How many clients may be connected, and how many bodies one registry may be asked for."""

    clients: int
    downloads: int


def raise_limit() -> int:
    """Raise the limit of open files as far as it may be, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


def shared_out(limit: int, downloads: int) -> Descriptors:
    """Return the shares of ``limit`` descriptors; ``downloads`` is what is wanted of the second."""
    rest = limit - OWN
    downloads = max(2, min(downloads, rest // (2 * PER_DOWNLOAD)))
    return Descriptors(max(8, (rest - PER_DOWNLOAD * downloads) // PER_CLIENT), downloads)
