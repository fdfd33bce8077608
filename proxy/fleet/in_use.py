"""Shares reports of images in use, so that all replicas protect these images from eviction.

Redis has a hash with a row for each source. A file of images in use counts for its own replica
only.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from proxy.core.tolerant_json import as_list

MAX_NAME: Final = 1000

Row = list[Any]
"""Source, names of images, how many of them were named, and when it expires (Unix seconds)."""


class LocalFeeds(Protocol):
    """The reports that this replica knows."""

    @property
    def on_report(self) -> list[Callable[[str], None]]:
        """Called with the source of each report that is made here."""

    def rows(self) -> dict[str, Row]:
        """Return the reports by source, without those that have expired and those of files."""

    def follow(self, rows: Iterable[object]) -> None:
        """Take over reports that were made elsewhere. Rows that make no sense are left out."""


class FeedRows:
    """The reports as rows."""

    channel: Final = "in-use"
    absent: Final = None

    def __init__(self, feeds: LocalFeeds) -> None:
        self._feeds = feeds

    def listen(self, changed: Callable[[str], None]) -> None:
        """Call ``changed`` with the source of each report that is made here."""
        self._feeds.on_report.append(changed)

    def rows(self) -> Mapping[str, bytes]:
        """Return the reports by source."""
        return {source: json.dumps(row).encode() for source, row in self._feeds.rows().items()}

    def message(self, name: str, value: bytes) -> bytes:
        """Return the source."""
        return name.encode()

    def names_in(self, message: bytes) -> Iterable[str]:
        """Return the source."""
        return [message.decode(errors="replace")] if len(message) <= MAX_NAME else []

    def has_ended(self, value: bytes) -> bool:
        """Return True for a report that has expired, or makes no sense."""
        row = _row(value)
        ends = row[-1] if row else 0
        return isinstance(ends, int | float) and ends <= time.time()

    async def follow(self, rows: Mapping[str, bytes]) -> None:
        """Take over reports that were made elsewhere."""
        self._feeds.follow([_row(value) for value in rows.values()])


def _row(value: bytes) -> Row:
    """Return a row from Redis; [] for a malformed one."""
    try:
        return as_list(json.loads(value))
    except (ValueError, RecursionError):
        return []
