"""Fetches images on a schedule, so that they are held before clients need them."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import structlog

from proxy.core.errors import RegistryError
from proxy.core.records import Clock
from proxy.core.routing import Router
from proxy.core.selection import is_pattern
from proxy.runtime.metrics import CacheCounters
from proxy.services.expansion import Expansion
from proxy.services.pull import Platforms, Puller, PullOptions

CONCURRENCY: Final = 2
"""Images of a schedule that are fetched at the same time: clients come first."""

CHECK_SECONDS: Final = 30.0
"""Maximum wait between two readings of the clock, which may be set in between."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Warming:
    """Images and patterns, for which platforms and when (cron syntax, local time zone)."""

    images: tuple[str, ...]
    platforms: Platforms
    schedule: str
    with_referrers: bool


@dataclass(slots=True)
class _Round:
    """The result of one run of a schedule."""

    whole: int = 0
    incomplete: int = 0
    fetched_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def fail(self, problem: str) -> None:
        self.incomplete += 1
        self.problems.append(problem)


class Warmer:
    """Runs the schedules, each at its next time; a run that takes too long skips times."""

    def __init__(
        self,
        puller: Puller,
        expansion: Expansion,
        router: Router,
        clock: Clock,
        counters: CacheCounters,
    ) -> None:
        self._puller = puller
        self._expansion = expansion
        self._router = router
        self._clock = clock
        self._counters = counters
        self._due: dict[Warming, float] = {}
        self._changed = asyncio.Event()

    def use(self, warmings: Iterable[Warming]) -> None:
        """Follow these schedules from now on. A run in progress continues."""
        now = self._clock()
        self._due = {one: self._due.get(one) or next_time(one.schedule, now) for one in warmings}
        self._changed.set()

    async def watch(self) -> None:
        """Run the schedules until cancelled."""
        while True:
            self._changed.clear()
            for warming, due in list(self._due.items()):
                if due <= self._clock():
                    await self.run(warming)
                    if warming in self._due:
                        self._due[warming] = next_time(warming.schedule, self._clock())
            await self._wait(min(self._due.values(), default=math.inf) - self._clock())

    async def run(self, warming: Warming) -> None:
        """Fetch all images of a schedule, and log the totals and the failures."""
        done = _Round()
        images = await self._images(warming.images, done)
        slots = asyncio.Semaphore(CONCURRENCY)
        wanted = PullOptions(warming.platforms, with_referrers=warming.with_referrers)
        async with asyncio.TaskGroup() as group:
            for image in images:
                group.create_task(self._pull(image, wanted, slots, done), name=f"warm {image}")
        self._counters.warmed_images += done.whole
        self._counters.warm_failures += done.incomplete
        for problem in done.problems:
            log.warning("an image could not be warmed", reason=problem)
        log.info(
            "warmed",
            schedule=warming.schedule,
            whole=done.whole,
            incomplete=done.incomplete,
            fetched_bytes=done.fetched_bytes,
        )

    async def _images(self, names: Iterable[str], done: _Round) -> dict[str, None]:
        """Return the images that names and patterns select, once each."""
        images: dict[str, None] = {}
        for name in names:
            if not is_pattern(name):
                images.setdefault(name)
                continue
            try:
                found = await self._expansion.images(self._router.parse_selector(name))
            except RegistryError as error:
                done.fail(f"{name}: {error.message}")
                continue
            for note in found.notes:
                log.info("a pattern may select more", pattern=name, reason=note)
            for problem in found.problems:
                done.fail(f"{name}: {problem}")
            images.update(dict.fromkeys(found.images))
        return images

    async def _pull(
        self, name: str, wanted: PullOptions, slots: asyncio.Semaphore, done: _Round
    ) -> None:
        async with slots:
            try:
                pulled = await self._puller.outcome(self._router.parse_image(name), wanted)
            except RegistryError as error:
                done.fail(f"{name}: {error.message}")
                return
        done.fetched_bytes += pulled.fetched_bytes
        if pulled.problems:
            done.fail(f"{name}: {pulled.problems[0]}")
        else:
            done.whole += 1

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until the schedules change."""
        try:
            async with asyncio.timeout(min(max(seconds, 0.01), CHECK_SECONDS)):
                await self._changed.wait()
        except TimeoutError:
            return


def next_time(schedule: str, after: float) -> float:
    """Return the next time of a schedule after a Unix time, as a Unix time."""
    from cronsim import CronSim  # noqa: PLC0415 - only if something is scheduled

    # Naive times are local ones, so that 03:00 stays 03:00 when daylight saving time begins.
    start = datetime.fromtimestamp(after)
    return float(next(CronSim(schedule, start)).timestamp())
