"""What eviction spares: pinned images, and those that are said to be in use.

An image is spared with its whole tree, as far as it is held. Pins come from the configuration, or
are added while running and kept in the index. Either may be patterns.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from fnmatch import translate
from typing import Final

import structlog

from proxy.content.in_use import Feeds
from proxy.core.errors import Conflict, PinUnknown, RegistryError, StorageError
from proxy.core.names import Digest, Image, Tag, Target
from proxy.core.records import disk_bytes
from proxy.core.selection import Selector
from proxy.index import Index
from proxy.runtime.executors import to_its_end

STALE_SECONDS: Final = 5.0
"""For so long at most a new image may go unnoticed: it is the warmest anyway."""

_REST: Final = 20.0
"""Times as long as the last look took, but no longer than that."""

_NOTE: Final = "pins"

log = structlog.get_logger(__name__)


async def _nowhere() -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Pin:
    """One pin and what it keeps: ``bytes`` on disk; ``refused`` says why it keeps less."""

    name: str
    is_configured: bool
    images: int
    bytes: int
    refused: str | None


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A configured pattern, in whose ``text`` ``*`` has always stood for slashes as well.

    A pin that keeps more than it must does no harm; one that no longer keeps an image does.
    """

    text: str
    selector: Selector
    anywhere: re.Pattern[str]

    def matches(self, target: Target, tag: Tag, digest: Digest) -> bool:
        return self.anywhere.match(f"{target}:{tag}") is not None or self.selector.matches(
            target, tag, digest
        )


Configured = tuple[list[Image], list[_Pattern]]
"""Configured pins: names and patterns."""


class Pins:
    """The spared content. ``limit`` tells how many bytes may be pinned; ``parse`` reads a name."""

    def __init__(
        self,
        index: Index,
        configured: Iterable[str],
        *,
        parse: Callable[[str], Image | Selector],
        limit: Callable[[], int],
        feeds: Feeds,
    ) -> None:
        """Take the configured pins. Raises ``RegistryError`` for one that cannot be read."""
        self._index = index
        self._parse = parse
        self.limit = limit
        self._feeds = feeds
        self._exact, self._patterns = self.parsed(configured, parse)
        self._added: list[Image | Selector] = []
        self._unreadable: list[str] = []
        """Names that were noted and mean nothing now: kept, for they may mean something again."""
        self._is_loaded = False
        self._named_elsewhere: Callable[[], Awaitable[list[str]]] = _nowhere
        self._spared: set[Digest] = set()
        self._pins: list[Pin] = []
        self._seen: tuple[int, int, float] | None = None
        self._noting = asyncio.Lock()
        self._refused: set[str] = set()

    @staticmethod
    def parsed(configured: Iterable[str], parse: Callable[[str], Image | Selector]) -> Configured:
        """Return configured pins for ``use``. Raises ``RegistryError`` for one that is no name."""
        exact: list[Image] = []
        patterns: list[_Pattern] = []
        for text in configured:
            parsed = parse(text)
            if isinstance(parsed, Selector):
                patterns.append(_Pattern(text, parsed, re.compile(translate(text))))
            else:
                exact.append(parsed)
        return exact, patterns

    def use(self, configured: Configured) -> None:
        """Keep these instead of the former configured pins."""
        self._exact, self._patterns = configured
        self._seen = None

    async def load(self, named_elsewhere: Callable[[], Awaitable[list[str]]]) -> None:
        """Recall the pins that were added in former times; ``named_elsewhere`` if none is noted.

        When the disk fails, they are recalled before the next one is added or removed.
        """
        self._named_elsewhere = named_elsewhere
        try:
            await self._load()
        except StorageError as error:
            log.error("pins cannot be read yet", error=str(error))

    async def _load(self) -> None:
        noted = await self._index.note(_NOTE)
        is_noted = isinstance(noted, list)
        for name in noted if is_noted else await self._named_elsewhere():
            try:
                self._added.append(self._parse(str(name)))
            except RegistryError:
                self._unreadable.append(str(name))
                log.warning("a pin cannot be read any more", pin=name)
        self._is_loaded = True
        self._seen = None
        if is_noted:
            return
        if self._added:
            log.warning("pins found in index.json that the index had lost", pins=self.added())
        try:
            await self._index.set_note(_NOTE, self.added())
        except StorageError as error:
            log.warning("pins cannot be noted", error=str(error))

    def added(self) -> list[str]:
        """Return the names of the pins that were added while running."""
        return [*map(str, self._added), *self._unreadable]

    async def add(self, name: str) -> Pin:
        """Pin an image for good. Raises ``RegistryError``, ``StorageError``."""
        image = self._parse(name)
        await to_its_end(self._add(image))
        return next(pin for pin in self.all() if pin.name == str(image))

    async def _add(self, image: Image | Selector) -> None:
        """Never left half done: what is noted and what is known must not differ."""
        async with self._noting:
            await self._recall()
            if image not in self._added and image not in self._exact:
                self._refuse_too_much(image)
                await self._index.set_note(_NOTE, [*self.added(), str(image)])
                self._added.append(image)
                self._seen = None

    async def remove(self, name: str) -> list[str]:
        """End a pin that was added, or all that a pattern matches; return their names.

        Raises ``RegistryError``, ``StorageError``.
        """
        if name in self._unreadable:
            return await to_its_end(self._remove_unreadable(name))
        pin = self._parse(name)
        if pin in self._exact or any(str(pin) == str(one.selector) for one in self._patterns):
            raise Conflict(f"{pin} is pinned by the configuration")
        return await to_its_end(self._remove(pin))

    async def _recall(self) -> None:
        """Read the pins if that has failed: what is noted next replaces them."""
        if not self._is_loaded:
            await self._load()

    async def _remove_unreadable(self, name: str) -> list[str]:
        async with self._noting:
            await self._index.set_note(_NOTE, [n for n in self.added() if n != name])
            self._unreadable = [n for n in self._unreadable if n != name]
        return [name]

    async def _remove(self, pin: Image | Selector) -> list[str]:
        async with self._noting:
            await self._recall()
            ended = [one for one in self._added if one == pin or _is_meant(one, pin)]
            if not ended:
                raise PinUnknown(f"{pin} is not pinned")
            kept = [one for one in self._added if one not in ended]
            await self._index.set_note(_NOTE, [*map(str, kept), *self._unreadable])
            self._added = kept
            self._seen = None
            return [str(one) for one in ended]

    def pinning(self, target: Target, tag: Tag, digest: Digest) -> list[str]:
        """Return the pins that name an image: its tag, its digest, or a pattern that matches it."""
        by_name, by_digest = Image(target, tag, None), Image(target, None, digest)
        meant = {by_name, by_digest, Image(None, None, digest)}
        found = [str(pin) for pin in (*self._exact, *self._added) if pin in meant]
        found += [one.text for one in self._patterns if one.matches(target, tag, digest)]
        selectors = [pin for pin in self._added if isinstance(pin, Selector)]
        return found + [str(pin) for pin in selectors if pin.matches(target, tag, digest)]

    def spared(self) -> set[Digest]:
        """Return all that must stay: as of now, or of lately where looking takes long."""
        if self._is_stale():
            started = time.monotonic()
            self._spared = self._collect()
            for image in self._feeds.images():
                for root in self._roots(image):
                    self._spared |= self._tree(root)
            ended = time.monotonic()
            rest = min(STALE_SECONDS, _REST * (ended - started))
            if self._index.is_ready:  # else there is more to come
                self._seen = self._index.revision, self._feeds.revision, ended + rest
        return self._spared

    def pinned(self) -> set[Digest]:
        """Return what is pinned now; what is in use is not among it unless it is pinned too."""
        return self._collect()

    def roots(self) -> list[Digest]:
        """Return the manifest of every pinned image, as far as it is known; held or not."""
        images = [pin for pin in (*self._exact, *self._added) if isinstance(pin, Image)]
        found = [root for image in images for root in self._roots(image)]
        found += [image.digest for image in images if image.digest is not None]
        for matched in self._matched().values():
            found += matched
        return list(dict.fromkeys(found))

    def all(self) -> list[Pin]:
        """Return every pin with what it keeps now."""
        self._collect()
        return self._pins

    @property
    def bytes(self) -> int:
        """Disk bytes that are pinned, as of the last look."""
        return sum(pin.bytes for pin in self._pins)

    def _is_stale(self) -> bool:
        if self._seen is None:
            return True
        index, feeds, until = self._seen
        if feeds != self._feeds.revision:
            return True
        return index != self._index.revision and time.monotonic() > until

    def _collect(self) -> set[Digest]:
        """Honour the pins in their order, as far as the budget goes."""
        spared: set[Digest] = set()
        self._pins = []
        room = self.limit()
        configured: list[tuple[str, list[Digest]]] = [
            (str(image), self._roots(image)) for image in self._exact
        ]
        matched = self._matched()
        configured += [(one.text, matched[one.text]) for one in self._patterns]
        added = [
            (str(pin), matched[str(pin)] if isinstance(pin, Selector) else self._roots(pin))
            for pin in self._added
        ]
        for number, (name, roots) in enumerate(configured + added):
            is_configured = number < len(configured)
            kept, images, refused = 0, 0, None
            for root in roots:
                tree = self._tree(root) - spared
                size = self._held_bytes(tree)
                if size > room:
                    refused = f"{size} bytes more would exceed the {self.limit()} for pins"
                    continue
                spared |= tree
                room, kept, images = room - size, kept + size, images + 1
            self._pins.append(Pin(name, is_configured, images, kept, refused))
        self._log_refused()
        return spared

    def _log_refused(self) -> None:
        """Log each pin that is not honoured once, until it is."""
        refused = {pin.name: pin.refused for pin in self._pins if pin.refused is not None}
        for name in refused.keys() - self._refused:
            log.warning("a pin is not honoured in full", pin=name, reason=refused[name])
        self._refused = set(refused)

    def _matched(self) -> dict[str, list[Digest]]:
        """Return what each pattern matches, by one look at all tags."""
        patterns: dict[str, _Pattern | Selector] = {one.text: one for one in self._patterns}
        patterns |= {str(pin): pin for pin in self._added if isinstance(pin, Selector)}
        found: dict[str, list[Digest]] = {text: [] for text in patterns}
        if patterns:
            for target, tag, record in self._index.tagged():
                digest = record.descriptor.digest
                for text, pattern in patterns.items():
                    if pattern.matches(target, tag, digest):
                        found[text].append(digest)
        return found

    def _roots(self, image: Image) -> list[Digest]:
        if image.digest is not None:
            return [image.digest] if self._index.held(image.digest) else []
        assert image.target is not None
        assert image.tag is not None
        record = self._index.pointed(image.target, image.tag)
        return [] if record is None else [record.descriptor.digest]

    def _tree(self, root: Digest) -> set[Digest]:
        """Return a manifest and all that it lists, held or not."""
        tree = {root}
        todo = [root]
        while todo:
            for child in self._index.children(todo.pop()):
                if child.digest not in tree:
                    tree.add(child.digest)
                    todo.append(child.digest)
        return tree

    def _held_bytes(self, tree: Iterable[Digest]) -> int:
        records = (self._index.held(digest) for digest in tree)
        return sum(disk_bytes(record.size) for record in records if record is not None)

    def _refuse_too_much(self, image: Image | Selector) -> None:
        """Raise ``Conflict`` when what an image needs does not fit beside the other pins.

        A pattern may match more later: what does not fit then is reported with the pins.
        """
        if isinstance(image, Selector):
            return
        spared = self._collect()
        needed = 0
        for root in self._roots(image):
            for digest in self._tree(root) - spared:
                record = self._index.held(digest)
                needed += disk_bytes(record.size) if record is not None else 0
                needed += sum(
                    disk_bytes(child.size)
                    for child in self._index.children(digest)
                    if child.digest not in spared and self._index.held(child.digest) is None
                )
        pinned, limit = self.bytes, self.limit()
        if pinned + needed > limit:
            raise Conflict(f"{image} needs {needed} bytes; {pinned} are pinned, and {limit} may be")


def _is_meant(pin: Image | Selector, by: Image | Selector) -> bool:
    """Return True if a pattern means a pinned image."""
    if not isinstance(by, Selector) or isinstance(pin, Selector) or pin.target is None:
        return False
    if pin.tag is not None and by.digest is None:
        return by.matches(pin.target, pin.tag, Digest(""))
    return pin.digest is not None and by.is_of_repositories and by.has(pin.target)
