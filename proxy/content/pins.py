"""The content that eviction must not touch: pinned images, and images that are in use.

An image is protected with everything that it lists. Pins come from the configuration, or are added
at run time and kept in the index. Either may be patterns.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Set
from dataclasses import dataclass
from fnmatch import translate
from typing import Final

import structlog

from proxy.content.graph import Graph
from proxy.content.in_use import Feeds
from proxy.content.tags import TagRecords
from proxy.core.errors import Conflict, PinUnknown, RegistryError, StorageError
from proxy.core.names import Digest, Image, Tag, Target
from proxy.core.records import disk_bytes
from proxy.core.selection import Selector
from proxy.index import Index
from proxy.runtime.executors import to_its_end

STALE_SECONDS: Final = 5.0
"""A new image is protected after so long at most. Until then it is safe as the warmest content."""

_REST: Final = 20.0
"""What is protected is not computed again for so many times as long as that took."""

_NOTE: Final = "pins"
"""Names the pins that were added while running; missing if the index has lost them."""

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
    """The protected content. ``limit`` returns how many disk bytes pins may protect."""

    def __init__(
        self,
        index: Index,
        configured: Iterable[str],
        *,
        parse: Callable[[str], Image | Selector],
        limit: Callable[[], int],
        feeds: Feeds,
    ) -> None:
        """Take the configured pins. Raises ``RegistryError`` for one that cannot be parsed."""
        self._index = index
        self._graph = Graph(index)
        self._tags = TagRecords(index)
        self._parse = parse
        self.limit = limit
        self._feeds = feeds
        self._exact, self._patterns = self.parsed(configured, parse)
        self._added: list[Image | Selector] = []
        self._unreadable: list[str] = []
        """Added pins that cannot be parsed now. Other settings may make them valid again."""
        self._is_loaded = False
        self._named_elsewhere: Callable[[], Awaitable[list[str]]] = _nowhere
        self.revision = 0
        """Grows whenever a pin is added, removed or configured anew."""
        self._computing = asyncio.Lock()
        self._protected: set[Digest] = set()
        self._computed: tuple[tuple[int, int], int, float] | None = None
        """Revisions of ``_protected``: of pins and feeds, of the index, and its time to live."""
        self._pins: list[Pin] = []
        self._noting = asyncio.Lock()
        self._refused: set[str] = set()

    @staticmethod
    def parsed(configured: Iterable[str], parse: Callable[[str], Image | Selector]) -> Configured:
        """Return configured pins for ``use``. Raises ``RegistryError`` for a malformed one."""
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
        """Replace the configured pins."""
        self._exact, self._patterns = configured
        self.revision += 1

    async def load(self, named_elsewhere: Callable[[], Awaitable[list[str]]]) -> None:
        """Load the pins that were added before this start.

        Those that ``named_elsewhere`` returns if the index has no note of them. If the disk fails,
        they are loaded before the next pin is added or removed.
        """
        self._named_elsewhere = named_elsewhere
        try:
            await self._load()
        except StorageError as error:
            log.error("pins cannot be read yet", error=str(error))

    async def _load(self) -> None:
        noted = await self._index.note(_NOTE)
        is_lost = not isinstance(noted, list)
        for name in await self._named_elsewhere() if is_lost else map(str, noted):
            try:
                self._added.append(self._parse(name))
            except RegistryError:
                self._unreadable.append(name)
                log.warning("a pin cannot be read any more", pin=name)
        self._is_loaded = True
        self.revision += 1
        if not is_lost:
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
        for pin in await self.all():
            if pin.name == str(image):
                return pin
        raise Conflict(f"{image} was unpinned at the same time")

    async def _add(self, image: Image | Selector) -> None:
        """Must run to its end: the note and what is in memory must not differ."""
        async with self._noting:
            await self._load_if_needed()
            if image not in self._added and image not in self._exact:
                await self._refuse_too_much(image)
                await self._index.set_note(_NOTE, [*self.added(), str(image)])
                self._added.append(image)
                self.revision += 1

    async def remove(self, name: str) -> list[str]:
        """Remove an added pin, or all that a pattern matches; return their names.

        Raises ``RegistryError``, ``StorageError``.
        """
        if name in self._unreadable:
            return await to_its_end(self._remove_unreadable(name))
        pin = self._parse(name)
        if pin in self._exact or any(str(pin) == str(one.selector) for one in self._patterns):
            raise Conflict(f"{pin} is pinned by the configuration")
        return await to_its_end(self._remove(pin))

    async def _load_if_needed(self) -> None:
        """Load the pins if that has failed before: the next note replaces theirs."""
        if not self._is_loaded:
            await self._load()

    async def _remove_unreadable(self, name: str) -> list[str]:
        async with self._noting:
            await self._index.set_note(_NOTE, [n for n in self.added() if n != name])
            self._unreadable = [n for n in self._unreadable if n != name]
        return [name]

    async def _remove(self, pin: Image | Selector) -> list[str]:
        async with self._noting:
            await self._load_if_needed()
            ended = [one for one in self._added if one == pin or _is_meant(one, pin)]
            if not ended:
                raise PinUnknown(f"{pin} is not pinned")
            kept = [one for one in self._added if one not in ended]
            await self._index.set_note(_NOTE, [*map(str, kept), *self._unreadable])
            self._added = kept
            self.revision += 1
            return [str(one) for one in ended]

    def pinning(self, target: Target, tag: Tag, digest: Digest) -> list[str]:
        """Return the pins that name an image: its tag, its digest, or a pattern that matches it."""
        by_name, by_digest = Image(target, tag, None), Image(target, None, digest)
        meant = {by_name, by_digest, Image(None, None, digest)}
        found = [str(pin) for pin in (*self._exact, *self._added) if pin in meant]
        found += [one.text for one in self._patterns if one.matches(target, tag, digest)]
        selectors = [pin for pin in self._added if isinstance(pin, Selector)]
        return found + [str(pin) for pin in selectors if pin.matches(target, tag, digest)]

    async def protected(self) -> Set[Digest]:
        """Return all that must stay, as of now, or of a few seconds ago if computing it is slow.

        Pins and feeds are always as of now: a pin that was added is never missing.
        """
        async with self._computing:
            while self._is_stale():
                of, index, started = self._inputs(), self._index.revision, time.monotonic()
                protected = await self._collect()
                for image in self._feeds.images():
                    protected.update(await self._graph.tree(*await self._roots(image)))
                if of != self._inputs():
                    continue  # a pin or a feed changed meanwhile
                self._protected, ended = protected, time.monotonic()
                rest = min(STALE_SECONDS, _REST * (ended - started))
                self._computed = of, index, ended + rest
                break
            return self._protected

    async def pinned(self) -> Set[Digest]:
        """Return what pins protect now; without what is only in use."""
        return await self._collect()

    async def roots(self) -> list[Digest]:
        """Return the manifest of every pinned image, as far as it is known; held or not."""
        images = [pin for pin in (*self._exact, *self._added) if isinstance(pin, Image)]
        found = [root for image in images for root in await self._roots(image)]
        found += [image.digest for image in images if image.digest is not None]
        for matched in (await self._matched()).values():
            found += matched
        return list(dict.fromkeys(found))

    async def all(self) -> list[Pin]:
        """Return every pin with what it keeps now."""
        await self._collect()
        return self._pins

    @property
    def bytes(self) -> int:
        """Disk bytes that are pinned, as of the last look."""
        return sum(pin.bytes for pin in self._pins)

    def _inputs(self) -> tuple[int, int]:
        return self.revision, self._feeds.revision

    def _is_stale(self) -> bool:
        if self._computed is None:
            return True
        inputs, index, until = self._computed
        if inputs != self._inputs():
            return True
        return index != self._index.revision and time.monotonic() > until

    async def _collect(self) -> set[Digest]:
        """Return what pins protect: honour them in their order, as far as the limit allows."""
        protected: set[Digest] = set()
        pins: list[Pin] = []
        limit = room = self.limit()
        for name, is_configured, roots in await self._named():
            kept, images, refused = 0, 0, None
            for root in roots:
                tree = set(await self._graph.tree(root)) - protected
                size = await self._held_bytes(tree)
                if size > room:
                    refused = f"{size} bytes more would exceed the {limit} for pins"
                    continue
                protected |= tree
                room, kept, images = room - size, kept + size, images + 1
            pins.append(Pin(name, is_configured, images, kept, refused))
        self._pins = pins
        self._log_refused()
        return protected

    async def _named(self) -> list[tuple[str, bool, list[Digest]]]:
        """Return each pin's name, whether it is configured, and the manifests that it pins."""
        exact, patterns, added = list(self._exact), list(self._patterns), list(self._added)
        matched = await self._matched()
        found = [(str(image), True, await self._roots(image)) for image in exact]
        found += [(one.text, True, matched[one.text]) for one in patterns]
        for pin in added:
            roots = matched[str(pin)] if isinstance(pin, Selector) else await self._roots(pin)
            found.append((str(pin), False, roots))
        return found

    def _log_refused(self) -> None:
        """Log each pin that is not honoured once, until it is."""
        refused = {pin.name: pin.refused for pin in self._pins if pin.refused is not None}
        for name in refused.keys() - self._refused:
            log.warning("a pin is not honoured in full", pin=name, reason=refused[name])
        self._refused = set(refused)

    async def _matched(self) -> dict[str, list[Digest]]:
        """Return what each pattern matches, by one look at all tags."""
        patterns: dict[str, _Pattern | Selector] = {one.text: one for one in self._patterns}
        patterns |= {str(pin): pin for pin in self._added if isinstance(pin, Selector)}
        found: dict[str, list[Digest]] = {text: [] for text in patterns}
        if not patterns:
            return found
        async for batch in self._tags.all():
            for one in batch:
                for text, pattern in patterns.items():
                    if pattern.matches(one.target, one.tag, one.digest):
                        found[text].append(one.digest)
        return found

    async def _roots(self, image: Image) -> list[Digest]:
        if image.digest is not None:
            return [image.digest] if await self._index.blob(image.digest) else []
        assert image.target is not None
        assert image.tag is not None
        record = await self._tags.get(image.target, image.tag)
        return [] if record is None else [record.descriptor.digest]

    async def _held_bytes(self, digests: Iterable[Digest]) -> int:
        records = await self._index.records(digests)
        return sum(disk_bytes(record.size) for record in records.values())

    async def _refuse_too_much(self, image: Image | Selector) -> None:
        """Raise ``Conflict`` when what an image needs does not fit beside the other pins.

        Counts what is held of it, and what its held manifests list besides. A pattern may match
        more later: what does not fit then is reported with the pins.
        """
        if isinstance(image, Selector):
            return
        protected = await self._collect()
        sizes: dict[Digest, int] = {}
        for digest in await self._graph.tree(*await self._roots(image)):
            record = await self._index.blob(digest)
            if record is not None:
                sizes[digest] = record.size
            for child in await self._index.children(digest) or ():
                sizes.setdefault(child.digest, child.size)
        needed = sum(disk_bytes(size) for digest, size in sizes.items() if digest not in protected)
        pinned, limit = self.bytes, self.limit()
        if pinned + needed > limit:
            raise Conflict(f"{image} needs {needed} bytes; {pinned} are pinned, and {limit} may be")


def _is_meant(pin: Image | Selector, by: Image | Selector) -> bool:
    """Return True if a pattern means a pinned image."""
    if not isinstance(by, Selector) or isinstance(pin, Selector) or pin.target is None:
        return False
    if pin.tag is not None and by.digest is None:
        return by.matches(pin.target, pin.tag, Digest(""))
    return pin.digest is not None and by.is_of_repositories and by.covers(pin.target)
