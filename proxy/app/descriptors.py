"""Divides this process's file descriptors between clients, registries and files."""

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

RESERVED: Final = 80
"""Descriptors for the index, the log, listening sockets and refused connections."""

PER_CLIENT: Final = 4
"""Of a client: its connection, the file that it reads, a copy of its socket for ``sendfile``, and a
connection to a registry for a manifest."""

PER_DOWNLOAD: Final = 4
"""Of a download: connection and spool file, twice, because as many may start beyond the limit."""


@dataclass(frozen=True, slots=True)
class DescriptorLimits:
    """Connected clients at a time, and response bodies of one registry at a time."""

    clients: int
    downloads: int


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard limit; return the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


def descriptor_limits(limit: int, downloads: int) -> DescriptorLimits:
    """Divide ``limit`` descriptors; ``downloads`` is the configured number of downloads."""
    rest = limit - RESERVED
    downloads = max(2, min(downloads, rest // (2 * PER_DOWNLOAD)))
    return DescriptorLimits(max(8, (rest - PER_DOWNLOAD * downloads) // PER_CLIENT), downloads)
