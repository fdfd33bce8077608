"""Checks chosen tags on a schedule, so that new images are held before clients ask for them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.content.pin_names import Named
from proxy.core.errors import RegistryError
from proxy.core.names import Image, Tag, Target
from proxy.core.policy import is_attachment
from proxy.core.records import Clock
from proxy.core.routing import Router
from proxy.core.selection import Selector
from proxy.runtime.metrics import CacheCounters
from proxy.services.expansion import MAX_IMAGES, Expansion
from proxy.services.renewal import CheckResult, Renewal

CONCURRENCY: Final = 4
"""Maximum number of concurrent checks."""

JITTER: Final = 0.1
"""Share of the interval by which a pass may begin earlier or later."""

SPREAD: Final = 0.5
"""Share of the interval over which the checks of a pass are spread."""

LONGEST_GAP: Final = 1.0
"""Maximum number of seconds between the starts of two checks."""

FRESH: Final = 0.8
"""Share of the interval for which a check by another replica, or for a client, is sufficient."""

CHECK_SECONDS: Final = 30.0
"""Maximum wait between two readings of the clock, which may be set in between."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Watching:
    """Images and patterns, and the interval of their checks in seconds."""

    images: tuple[Named, ...] = ()
    every: float = 600.0


class Watcher:
    """Checks all watched tags, one pass after the other."""

    def __init__(
        self,
        renewal: Renewal,
        expansion: Expansion,
        router: Router,
        counters: CacheCounters,
        clock: Clock,
    ) -> None:
        self._renewal = renewal
        self._expansion = expansion
        self._router = router
        self._counters = counters
        self._clock = clock
        self._watching = Watching()
        self._due = 0.0
        self._notes: dict[str, list[str]] = {}
        self._changed = asyncio.Event()

    def use(self, watching: Watching) -> None:
        """Watch these from now on; a pass in progress continues."""
        if watching != self._watching:
            self._watching = watching
            self._plan(0.0)
            self._changed.set()

    async def watch(self) -> None:
        """Run passes until cancelled."""
        while True:
            self._changed.clear()
            if not self._watching.images:
                await self._changed.wait()
            elif self._due <= self._clock():
                await self.run()
                self._plan(self._watching.every)
            else:
                await self._wait(self._due - self._clock())

    async def run(self) -> None:
        """Check every watched tag once."""
        watching = self._watching
        keys = await self._keys(watching.images)
        gap = min(LONGEST_GAP, SPREAD * watching.every / max(1, len(keys)))
        slots = asyncio.Semaphore(CONCURRENCY)
        outcomes: Counter[CheckResult] = Counter()

        async def check(target: Target, tag: Tag) -> None:
            try:
                found = await self._renewal.check(target, tag, watching.every * FRESH)
            finally:
                slots.release()
            outcomes[found] += 1
            self._counters.watch_checks[found] += 1

        async with asyncio.TaskGroup() as group:
            for key in keys:
                await slots.acquire()
                group.create_task(check(*key), name=f"watch {key[0]}:{key[1]}")
                await asyncio.sleep(gap)
        log.debug(
            "watched tags were checked",
            tags=len(keys),
            **{found.value: count for found, count in outcomes.items()},
        )

    def _plan(self, seconds: float) -> None:
        """Set when the next pass begins: about ``seconds`` from now."""
        spread = JITTER * self._watching.every
        self._due = self._clock() + seconds + random.uniform(-spread, spread)  # noqa: S311 - no secret

    async def _keys(self, images: Iterable[Named]) -> list[tuple[Target, Tag]]:
        """Return the tags that images and patterns select, once each."""
        keys: dict[tuple[Target, Tag], None] = {}
        for one in images:
            try:
                async for target, tag in self._selected(one):
                    if not is_attachment(tag):  # it is fetched with its image
                        keys[target, tag] = None
            except RegistryError as error:
                self._note(one.name, [error.message])
        if len(keys) > MAX_IMAGES:
            log.warning("too many tags are watched", tags=len(keys), checked=MAX_IMAGES)
        return list(keys)[:MAX_IMAGES]

    async def _selected(self, one: Named) -> AsyncIterator[tuple[Target, Tag]]:
        """Yield the tags that one image or pattern selects. Raises ``RegistryError``.

        A pattern for tags selects from the tags of the registry. A pattern without one selects tags
        that are known here, because a repository may have too many.
        """
        if isinstance(one.meant, Image):
            if one.meant.target is not None and one.meant.tag is not None:
                yield one.meant.target, one.meant.tag
        elif one.meant.tags is None:
            async for known in self._expansion.known(one.meant):
                yield known.target, known.tag
        else:
            async for key in self._listed(one.name, one.meant):
                yield key

    async def _listed(self, name: str, selector: Selector) -> AsyncIterator[tuple[Target, Tag]]:
        found = await self._expansion.images(selector)
        self._note(name, found.notes)
        for text in found.images:
            image = self._router.parse_image(text)
            if image.target is not None and image.tag is not None:
                yield image.target, image.tag

    def _note(self, name: str, notes: list[str]) -> None:
        """Log why a pattern may select more images, once until the reason changes."""
        if self._notes.get(name, []) != notes:
            for note in notes:
                log.info("a pattern may select more", pattern=name, reason=note)
        self._notes[name] = notes

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until other tags are watched."""
        try:
            async with asyncio.timeout(min(max(seconds, 0.01), CHECK_SECONDS)):
                await self._changed.wait()
        except TimeoutError:
            return
