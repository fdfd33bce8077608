"""The images that are in use, as reported in a file or by nodes. Eviction does not remove them.

A report over HTTP expires. A file is valid as long as it exists; if it cannot be read, its last
content stays valid.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
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
MAX_KEPT: Final = 100_000
"""Maximum number of images of one source, including the past digests of their tags."""

MAX_FILE: Final = 4 * 1024 * 1024
FILE: Final = "file"
WATCH_SECONDS: Final = 5.0
_NOTE: Final = "in use"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Feed:
    """The images that one source reports, until ``expires_at`` (Unix seconds, None: no expiry).

    ``images`` has the ``named`` images, and the past digests of their tags.
    """

    source: str
    images: tuple[Image, ...]
    named: int
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class FeedUpdate:
    """The result of a report: the feed, and the lines that could not be parsed, with reasons."""

    feed: Feed
    not_understood: list[str]


class Feeds:
    """The reports of all sources."""

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
        self.on_report: Final[list[Callable[[str], None]]] = []
        """Called with the source of each report, except the file."""
        self._saved = 0

    @property
    def revision(self) -> int:
        """Grows whenever the images in use change."""
        self._expire()
        return self._revision

    def images(self) -> list[Image]:
        """Return all images that are in use."""
        self._expire()
        return [image for feed in self._feeds.values() for image in feed.images]

    def all(self) -> list[Feed]:
        """Return the feeds that have not expired."""
        self._expire()
        return list(self._feeds.values())

    async def report(self, source: str, text: str, ttl: float | None) -> FeedUpdate:
        """Replace a source's list by ``text``, one image per line.

        It expires after ``ttl`` seconds, None: never. Raises ``RequestInvalid`` if there are too
        many lines or sources.
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
        ends = None if ttl is None else self._clock() + ttl
        feed = Feed(source, images, len(named), ends)
        self._feeds[source] = feed
        self._revision += 1
        if source != FILE:
            for listener in self.on_report:
                listener(source)
        return FeedUpdate(feed, refused)

    def rows(self) -> dict[str, list[Any]]:
        """Return the reports as JSON values by source, without the file."""
        return {feed.source: _row(feed) for feed in self.all() if feed.source != FILE}

    def follow(self, rows: Iterable[object]) -> None:
        """Adopt reports to other replicas; malformed ones are ignored."""
        for row in rows:
            source = next(iter(as_list(row)), None)
            if source == FILE or len({*self._feeds, source}) > MAX_SOURCES:
                continue
            with suppress(RegistryError, ValueError, TypeError):
                self._restore(row)
                self._revision += 1

    async def load(self) -> None:
        """Load the reports that were stored before this start, and read the file."""
        try:
            noted = await self._index.note(_NOTE)
        except StorageError:
            log.warning("images in use cannot be read")
            noted = None
        for row in as_list(noted):
            try:
                self._restore(row)
            except (RegistryError, ValueError, TypeError):
                log.warning("a report of images in use cannot be read any more")
        await self._read_file()
        self._saved = self.revision

    async def watch(self) -> None:
        """Read the file whenever it changes, and store all reports, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self._read_file()
            await self.save()

    async def save(self) -> None:
        """Store the reports for the next start, if they have changed."""
        if (revision := self.revision) == self._saved:
            return
        self._saved = revision
        rows = [_row(feed) for feed in self._feeds.values()]
        try:
            await self._index.set_note(_NOTE, rows)
        except StorageError as error:
            log.warning("images in use cannot be stored", error=str(error))

    def _restore(self, row: Any) -> None:
        source, names, named, ends = row
        if source == FILE and self._file is None:
            return
        images = tuple(self._parse(name) for name in names[:MAX_KEPT])
        self._feeds[str(source)] = Feed(str(source), images, int(named), _time(ends))

    async def _read_file(self) -> None:
        if self._file is None:
            return
        try:
            modified = self._file.stat().st_mtime
            if modified == self._read_at:
                return
            text = await in_thread(lambda: _text(self._file))
            update = await self.report(FILE, text, None)
        except (OSError, UnicodeDecodeError, RegistryError) as error:
            log.warning("the file of images in use cannot be read", error=str(error))
            return
        self._read_at = modified
        for line in update.not_understood:
            log.warning("not an image", file=str(self._file), problem=line)

    async def _with_history(self, named: Iterable[Image]) -> tuple[Image, ...]:
        """Add the past digests of each tag: a container may have been started with them."""
        images: dict[Image, None] = {}
        for image in named:
            images[image] = None
            if image.target is not None and image.tag is not None:
                for entry in await self._index.history(image.target, image.tag):
                    images[Image(image.target, None, entry.digest)] = None
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


def _row(feed: Feed) -> list[Any]:
    """Return a feed as JSON values."""
    return [feed.source, [*map(str, feed.images)], feed.named, feed.expires_at]


def _time(value: object) -> float | None:
    """Return a Unix time, None without expiry. Raises ``TypeError``."""
    if value is not None and not isinstance(value, int | float):
        raise TypeError
    return value


def _text(file: Path | None) -> str:
    assert file is not None
    with file.open("rb") as opened:
        return opened.read(MAX_FILE).decode()
