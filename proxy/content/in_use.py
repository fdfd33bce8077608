"""Which images run now, as others tell: a file that somebody writes, or calls from nodes.

What is told with a life ends with it. A file holds for as long as it is there; when it cannot be
read, what it said last goes on to hold.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.core.errors import RegistryError, RequestInvalid, StorageError
from proxy.core.names import Image
from proxy.core.records import Clock
from proxy.core.tolerant_json import as_list
from proxy.index import Index
from proxy.runtime.executors import in_thread

MAX_SOURCES: Final = 10_000
MAX_IMAGES: Final = 10_000
MAX_FILE: Final = 4 * 1024 * 1024
FILE: Final = "file"
WATCH_SECONDS: Final = 5.0
_NOTE: Final = "in use"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Feed:
    """What one source says is in use, until ``expires_at`` (Unix seconds, None: no end)."""

    source: str
    images: tuple[Image, ...]
    named: int
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class FeedUpdate:
    """What came of a list: the feed, and the lines that were not understood, with the reason."""

    feed: Feed
    not_understood: list[str]


class Feeds:
    """All that is said to be in use."""

    def __init__(
        self, index: Index, parse: Callable[[str], Image], clock: Clock, file: Path | None
    ) -> None:
        self._index = index
        self._clock = clock
        self._parse = parse
        self._file = file
        self._read_at: float | None = None
        self._feeds: dict[str, Feed] = {}
        self._revision = 0
        self._kept = 0

    @property
    def revision(self) -> int:
        """How often what is in use has changed."""
        self._expire()
        return self._revision

    def images(self) -> list[Image]:
        """Return everything that is in use."""
        self._expire()
        return [image for feed in self._feeds.values() for image in feed.images]

    def all(self) -> list[Feed]:
        """Return the feeds that have not ended."""
        self._expire()
        return list(self._feeds.values())

    async def tell(self, source: str, text: str, life: float | None) -> FeedUpdate:
        """Take a source's list, an image a line, in place of its last one.

        ``life`` in seconds, None for one without end. Raises ``RequestInvalid`` for more than can
        be right.
        """
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        self._expire()
        if len(lines) > MAX_IMAGES or len({*self._feeds, source}) > MAX_SOURCES:
            raise RequestInvalid(f"at most {MAX_IMAGES} lines, from {MAX_SOURCES} sources")
        named, refused = [], []
        for number, line in enumerate(lines, 1):
            try:
                if line:
                    named.append(self._parse(line))
            except RegistryError as error:
                refused.append(f"line {number}: {error.message}")
        images = await self._with_history(named)
        ends = None if life is None else self._clock() + life
        feed = Feed(source, images, len(named), ends)
        self._feeds[source] = feed
        self._revision += 1
        return FeedUpdate(feed, refused)

    async def load(self) -> None:
        """Recall what was in use when a former process ended, and read the file."""
        try:
            noted = await self._index.note(_NOTE)
        except StorageError:
            log.warning("what was in use cannot be read")
            noted = None
        for entry in as_list(noted):
            try:
                self._recall(entry)
            except (RegistryError, ValueError, TypeError):
                log.warning("what was in use cannot be read any more")
        await self._read_file()
        self._kept = self.revision

    async def watch(self) -> None:
        """Read the file when it changes, and note what is in use, for ever."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self._read_file()
            await self.keep()

    async def keep(self) -> None:
        """Note what is in use for the next start, if it has changed."""
        if (revision := self.revision) == self._kept:
            return
        self._kept = revision
        rows = [
            [feed.source, [*map(str, feed.images)], feed.named, feed.expires_at]
            for feed in self._feeds.values()
        ]
        try:
            await self._index.set_note(_NOTE, rows)
        except StorageError as error:
            log.warning("what is in use cannot be noted", error=str(error))

    def _recall(self, row: Any) -> None:
        source, names, named, ends = row
        if source == FILE and self._file is None:
            return
        images = tuple(self._parse(name) for name in names)
        self._feeds[source] = Feed(source, images, named, ends)

    async def _read_file(self) -> None:
        if self._file is None:
            return
        try:
            modified = self._file.stat().st_mtime
            if modified == self._read_at:
                return
            text = await in_thread(lambda: _text(self._file))
            told = await self.tell(FILE, text, None)
        except (OSError, UnicodeDecodeError, RegistryError) as error:
            log.warning("the file of images in use cannot be read", error=str(error))
            return
        self._read_at = modified
        for line in told.not_understood:
            log.warning("not an image", file=str(self._file), problem=line)

    async def _with_history(self, named: Iterable[Image]) -> tuple[Image, ...]:
        """Add what each tag pointed to before: what runs may have been started then."""
        images: dict[Image, None] = {}
        for image in named:
            images[image] = None
            if image.target is not None and image.tag is not None:
                for sighting in await self._index.history(image.target, image.tag):
                    images[Image(image.target, None, sighting.digest)] = None
        return tuple(images)

    def _expire(self) -> None:
        now = self._clock()
        ended = [
            source
            for source, feed in self._feeds.items()
            if feed.expires_at is not None and feed.expires_at <= now
        ]
        for source in ended:
            del self._feeds[source]
        self._revision += bool(ended)


def _text(file: Path | None) -> str:
    assert file is not None
    with file.open("rb") as opened:
        return opened.read(MAX_FILE).decode()
