"""The content that eviction must not remove: pinned images, and images that are in use.

An image is protected with everything that it lists. Pins come from the configuration, or are added
at run time and kept in the index. Either may be patterns.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Set
from fnmatch import translate
from typing import Final

import structlog

from proxy.content.facts import Graph, Tags
from proxy.content.in_use import Feeds
from proxy.content.pin_names import Named, Pin, is_covered
from proxy.core.errors import Conflict, PinUnknown, RegistryError, StorageError
from proxy.core.names import Digest, Image, Tag, Target
from proxy.core.records import TagRecord, disk_bytes
from proxy.core.selection import Selector, selector_of
from proxy.index import Index
from proxy.runtime.executors import run_to_completion

STALE_SECONDS: Final = 5.0
"""Maximum delay until a new image is protected. Until then it is safe as the warmest content."""

_PAUSE_FACTOR: Final = 20.0
"""Time until the protected content is computed again, as a multiple of the computing time."""

_NOTE: Final = "pins"
"""Names the pins that were added while running; missing if the index has lost them."""

Record = Callable[[dict[str, object]], Awaitable[None]]
"""Writes notes, and what belongs to them."""

Answers = Callable[[Target, Tag, TagRecord], Awaitable[Collection[Digest]]]
"""Returns the digests that clients may get for a tag: older ones than its record's if it is held.

Sends no request.
"""

log = structlog.get_logger(__name__)


async def _nowhere() -> list[str]:
    return []


async def _newest(_: Target, __: Tag, record: TagRecord) -> list[Digest]:
    return [record.descriptor.digest]


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
        self._tags = Tags(index)
        self._parse = parse
        self.limit = limit
        self._feeds = feeds
        self._configured = self.parsed(configured, parse)
        self._added: list[Named] = []
        self._unreadable: list[str] = []
        """Added pins that cannot be parsed now. Other settings may make them valid again."""
        self._is_loaded = False
        self._named_elsewhere: Callable[[], Awaitable[list[str]]] = _nowhere
        self.on_change: Final[list[Callable[[str, bool], None]]] = []
        """Called with the name of a pin, and True if it was added, False if it was removed."""
        self.answers: Answers = _newest
        """Set as soon as the rules of tags are known."""
        self.revision = 0
        """Grows whenever a pin is added, removed or reconfigured."""
        self._computing = asyncio.Lock()
        self._protected: set[Digest] = set()
        self._computed: tuple[tuple[int, int], int, float] | None = None
        """Revisions of ``_protected``: of pins and feeds, of the index, and its time to live."""
        self._has_old = False
        """Clients get an older digest of some tag. It ends with time, not with a revision."""
        self._pins: list[Pin] = []
        self._noting = asyncio.Lock()
        self._refused: set[str] = set()

    @staticmethod
    def parsed(configured: Iterable[str], parse: Callable[[str], Image | Selector]) -> list[Named]:
        """Return configured pins for ``use``. Raises ``RegistryError`` for a malformed one.

        Patterns come last: when space is short, images that are named exactly take precedence.
        """
        images: list[Named] = []
        patterns: list[Named] = []
        for text in configured:
            meant = parse(text)
            if isinstance(meant, Selector):
                patterns.append(
                    Named(text, meant, is_configured=True, anywhere=re.compile(translate(text)))
                )
            else:
                images.append(Named(str(meant), meant, is_configured=True))
        return images + patterns

    def use(self, configured: list[Named]) -> None:
        """Replace the configured pins."""
        self._configured = configured
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
        self._read(await self._named_elsewhere() if is_lost else map(str, noted))
        self._is_loaded = True
        self.revision += 1
        if not is_lost:
            return
        if self._added:
            log.warning("pins found in index.json that the index had lost", pins=self.added())
        try:
            await self._index.set_note(_NOTE, self.added())
        except StorageError as error:
            log.warning("pins cannot be stored", error=str(error))

    def _read(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._added.append(self._named(name))
            except RegistryError:
                self._unreadable.append(name)
                log.warning("a pin cannot be read any more", pin=name)

    def added(self) -> list[str]:
        """Return the names of the pins that were added while running."""
        return [*(pin.name for pin in self._added), *self._unreadable]

    def _named(self, name: str) -> Named:
        meant = self._parse(name)
        return Named(str(meant), meant)

    def full_name(self, name: str) -> str:
        """Return the name of a pin as lists show it. Raises ``RegistryError``."""
        return self._named(name).name

    async def add(self, name: str) -> Pin:
        """Add a pin. Raises ``RegistryError``, ``StorageError``."""
        added = self._named(name)
        await run_to_completion(self._add(added))
        for pin in await self.all():
            if pin.name == added.name:
                return pin
        raise Conflict(f"{added.name} was unpinned at the same time")

    async def _add(self, pin: Named) -> None:
        """Must run to its end: the note and what is in memory must not differ."""
        async with self._noting:
            await self._load_if_needed()
            if pin.meant not in [one.meant for one in (*self._configured, *self._added)]:
                await self._refuse_too_much(pin.meant)
                await self._index.set_note(_NOTE, [*self.added(), pin.name])
                self._added.append(pin)
                self._changed({pin.name: True})

    async def add_all(self, names: Iterable[str], record: Record) -> None:
        """Pin images whose tags ``record`` writes in one step with the note that it gets.

        Nothing is refused: the pins report what does not fit. Raises ``RegistryError``, and what
        ``record`` raises.
        """
        await run_to_completion(self._add_all([self._named(name) for name in names], record))

    async def _add_all(self, pins: Iterable[Named], record: Record) -> None:
        async with self._noting:
            await self._load_if_needed()
            known = [one.meant for one in (*self._configured, *self._added)]
            new = [pin for pin in pins if pin.meant not in known]
            await record({_NOTE: [*self.added(), *(pin.name for pin in new)]})
            self._added += new
            self._changed({pin.name: True for pin in new})

    async def remove(self, name: str) -> list[str]:
        """Remove an added pin, or all pins that a pattern matches; return their names.

        Raises ``RegistryError``, ``StorageError``.
        """
        return await run_to_completion(self._remove(name))

    async def _remove(self, name: str) -> list[str]:
        async with self._noting:
            await self._load_if_needed()
            ended = [name] if name in self._unreadable else self._removable(self._named(name))
            await self._index.set_note(_NOTE, [one for one in self.added() if one not in ended])
            self._added = [pin for pin in self._added if pin.name not in ended]
            self._unreadable = [one for one in self._unreadable if one not in ended]
            self._changed(dict.fromkeys(ended, False))
            return ended

    def _changed(self, changes: Mapping[str, bool]) -> None:
        self.revision += 1
        for name, is_pinned in changes.items():
            for listener in self.on_change:
                listener(name, is_pinned)

    async def follow(self, changes: Mapping[str, bool]) -> None:
        """Adopt pins (True) and removals of other replicas. Raises ``StorageError``.

        No pin is refused: those that do not fit here are reported.
        """
        await run_to_completion(self._follow(changes))

    async def _follow(self, changes: Mapping[str, bool]) -> None:
        async with self._noting:
            await self._load_if_needed()
            before = self.added()
            kept = [name for name in before if changes.get(name, True)]
            names = kept + [name for name, pinned in changes.items() if pinned]
            names = list(dict.fromkeys(names))
            if names == before:
                return
            await self._index.set_note(_NOTE, names)
            self._added, self._unreadable = [], []
            self._read(names)
            self.revision += 1

    def _removable(self, pin: Named) -> list[str]:
        """Return the added pins that a name or a pattern means. Raises ``RegistryError``."""
        if any(str(one.meant) == pin.name for one in self._configured):
            raise Conflict(f"{pin.name} is pinned by the configuration")
        ended = [one.name for one in self._added if one == pin or is_covered(one.meant, pin.meant)]
        if not ended:
            raise PinUnknown(f"{pin.name} is not pinned")
        return ended

    async def _load_if_needed(self) -> None:
        """Load the pins if that has failed before: the next note replaces theirs."""
        if not self._is_loaded:
            await self._load()

    def pinning(self, target: Target, tag: Tag, digest: Digest) -> list[str]:
        """Return the pins that name an image: its tag, its digest, or a pattern that matches it."""
        pins = (*self._configured, *self._added)
        return [pin.name for pin in pins if pin.matches(target, tag, digest)]

    def of_images(self) -> list[Selector]:
        """Return the selectors of the pins that name one image each."""
        pins = (pin.meant for pin in (*self._configured, *self._added))
        return [selector_of(image) for image in pins if isinstance(image, Image)]

    async def protected(self) -> Set[Digest]:
        """Return the protected content, now, or seconds ago if computing it is slow.

        Pins and feeds are always current: an added pin is never missing.
        """
        async with self._computing:
            while self._is_stale():
                self._has_old = False
                of, index, started = self._inputs(), self._index.revision, time.monotonic()
                protected = await self.pinned()
                for image in self._feeds.images():
                    protected.update(await self._graph.tree(*await self._roots(image)))
                if of != self._inputs():
                    continue  # a pin or a feed changed meanwhile
                self._protected, ended = protected, time.monotonic()
                rest = min(STALE_SECONDS, _PAUSE_FACTOR * (ended - started))
                self._computed = of, index, ended + rest
                break
            return self._protected

    async def roots(self) -> list[Digest]:
        """Return the known manifests of every pinned image, held or not."""
        found: dict[Digest, None] = {}
        for pin, roots in await self._with_roots():
            found |= dict.fromkeys(roots)
            if isinstance(pin.meant, Image) and pin.meant.digest is not None:
                found[pin.meant.digest] = None
        return list(found)

    async def all(self) -> list[Pin]:
        """Return every pin with the content that it protects now."""
        await self.pinned()
        return self._pins

    @property
    def bytes(self) -> int:
        """Disk bytes that are pinned, as of the last computation."""
        return sum(pin.bytes for pin in self._pins)

    def _inputs(self) -> tuple[int, int]:
        return self.revision, self._feeds.revision

    def _is_stale(self) -> bool:
        if self._computed is None:
            return True
        inputs, index, until = self._computed
        if inputs != self._inputs():
            return True
        may_differ = self._has_old or index != self._index.revision
        return may_differ and time.monotonic() > until

    async def pinned(self) -> set[Digest]:
        """Return the content that pins protect now, without images that are only in use.

        Pins apply in their order, up to the limit.
        """
        protected: set[Digest] = set()
        pins: list[Pin] = []
        limit = room = self.limit()
        for pin, roots in await self._with_roots():
            kept, images, refused = 0, 0, None
            async for _, tree in self._graph.trees(roots):
                size = sum(held for digest, held in tree.items() if digest not in protected)
                if size > room:
                    refused = f"{size} bytes more would exceed the {limit} for pins"
                    continue
                protected.update(tree)
                room, kept, images = room - size, kept + size, images + 1
            pins.append(Pin(pin.name, pin.is_configured, images, kept, refused))
        self._pins = pins
        self._log_refused()
        return protected

    async def _with_roots(self) -> list[tuple[Named, list[Digest]]]:
        """Return each pin with the manifests that it pins; patterns take one look at all tags."""
        pins = (*self._configured, *self._added)
        found = [(pin, await self._roots(pin.meant)) for pin in pins]
        patterns = [each for each in found if isinstance(each[0].meant, Selector)]
        if patterns:
            async for batch in self._tags.all():
                for one in batch:
                    for pin, roots in patterns:
                        if pin.matches(one.target, one.tag, one.digest):
                            roots.extend(await self._answers(one.target, one.tag, one.record))
        return found

    def _log_refused(self) -> None:
        """Log each pin that is not honoured once, until it is."""
        refused = {pin.name: pin.refused for pin in self._pins if pin.refused is not None}
        for name in refused.keys() - self._refused:
            log.warning("a pin is not honoured in full", pin=name, reason=refused[name])
        self._refused = set(refused)

    async def _roots(self, image: Image | Selector) -> list[Digest]:
        """Return the manifests of an image, none if it is unknown; none for a pattern."""
        if isinstance(image, Selector):
            return []
        if image.digest is not None:
            return [image.digest] if await self._index.blob(image.digest) else []
        assert image.target is not None
        assert image.tag is not None
        record = await self._tags.get(image.target, image.tag)
        return [] if record is None else await self._answers(image.target, image.tag, record)

    async def _answers(self, target: Target, tag: Tag, record: TagRecord) -> list[Digest]:
        digests = [*await self.answers(target, tag, record)]
        self._has_old = self._has_old or digests != [record.descriptor.digest]
        return digests

    async def _refuse_too_much(self, image: Image | Selector) -> None:
        """Raise ``Conflict`` when what an image needs does not fit beside the other pins.

        Counts its held content, and missing content in its held manifests. A pattern may match
        more later: images that do not fit then are reported with the pins.
        """
        if isinstance(image, Selector):
            return
        protected = await self.pinned()
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
