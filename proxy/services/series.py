"""Counters over time: samples that survive restarts, in three resolutions.

Counters begin at 0 with each process, so a sample has differences. The finest samples are only in
memory. The others are notes of the index, an hour or a day each, under names that are reused in a
cycle, which limits their number. A crash loses the last minute.
"""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import structlog

from proxy.content.content import Content
from proxy.core.errors import StorageError
from proxy.core.tolerant_json import as_list
from proxy.runtime.metrics import Metrics, Outcome

SAMPLE_SECONDS: Final = 10.0
KEEP_SECONDS: Final = 60.0
MAX_POINTS: Final = 2000

log = structlog.get_logger(__name__)


class Sample(NamedTuple):
    """Counters over a span of time; ``cache_bytes`` is the value at its end."""

    requests: int = 0
    hits: int = 0
    client_bytes: int = 0
    upstream_bytes: int = 0
    errors: int = 0
    pulls_spent: int = 0
    cache_bytes: int = 0

    def plus(self, later: "Sample") -> "Sample":
        """Return the sum of two samples."""
        sums = (one + other for one, other in zip(self, later, strict=True))
        return Sample(*sums)._replace(cache_bytes=later.cache_bytes)

    def minus(self, earlier: "Sample") -> "Sample":
        """Return the difference from ``earlier``."""
        rest = (one - other for one, other in zip(self, earlier, strict=True))
        return Sample(*rest)._replace(cache_bytes=self.cache_bytes)


@dataclass(slots=True)
class Tier:
    """The last ``count`` samples of ``step`` seconds each, by number: Unix time / ``step``.

    A note has ``per_note`` of them; 0: they are not kept over restarts.
    """

    step: int
    count: int
    per_note: int = 0
    samples: dict[int, Sample] = field(default_factory=dict)

    def add(self, now: float, sample: Sample) -> None:
        """Add the counts until now, and drop old samples."""
        number = int(now // self.step)
        self.samples[number] = self.samples.get(number, Sample()).plus(sample)
        oldest = number - self.count
        for each in [each for each in self.samples if each <= oldest]:
            del self.samples[each]

    def notes(self, now: float) -> list[str]:
        """Return the names of all notes; none for a tier that is not stored."""
        current = int(now // self.step) // self.per_note if self.per_note else 0
        places = -(-self.count // self.per_note) + 1 if self.per_note else 0
        return [self._name(current - back, places) for back in range(places)]

    def note(self, now: float) -> tuple[str, list[list[int]]]:
        """Return name and value of the note with the sample at ``now``."""
        chunk = int(now // self.step) // self.per_note
        first = chunk * self.per_note
        numbers = range(first, first + self.per_note)
        rows = [[each, *self.samples[each]] for each in numbers if each in self.samples]
        return self._name(chunk, -(-self.count // self.per_note) + 1), rows

    def rows(self, step: int) -> list[list[int]]:
        """Return the samples as rows of a finer tier: each in the first of its samples."""
        return [[one * self.step // step, *sample] for one, sample in self.samples.items()]

    def load(self, rows: Iterable[Any], now: float) -> None:
        """Load the samples of a note. Old and malformed ones are ignored."""
        newest = int(now // self.step)
        for row in rows:
            values = [value for value in as_list(row) if type(value) is int and value >= 0]
            if len(values) != 1 + len(Sample._fields):
                continue
            number, *counted = values
            if newest - self.count < number <= newest:
                self.samples[number] = Sample(*counted)

    def _name(self, chunk: int, places: int) -> str:
        return f"series {self.step} {chunk % places}"


@dataclass(frozen=True, slots=True)
class Points:
    """Samples that begin at multiples of ``step`` seconds; times without a sample are omitted."""

    start: int
    step: int
    samples: list[tuple[int, Sample]]


class Series:
    """Samples the counters, and stores the samples."""

    def __init__(self, content: Content, metrics: Metrics) -> None:
        self._content = content
        self._metrics = metrics
        self._before = Sample()
        self._tiers: Final = (Tier(10, 360), Tier(60, 2880, 60), Tier(900, 5760, 96))
        self._is_loaded = False
        self._loading = asyncio.Lock()

    async def run(self) -> None:
        """Sample until cancelled; store the samples every minute."""
        await self.load()
        kept = self._content.clock()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.sample()
            if abs((now := self._content.clock()) - kept) >= KEEP_SECONDS:
                kept = now
                await self._save()

    async def close(self) -> None:
        """Take a last sample, and store all."""
        await self.load()
        self.sample()
        await self._save()

    def sample(self) -> None:
        """Add a sample of the time since the last one, once earlier ones are loaded."""
        if not self._is_loaded:
            return
        counted, now = self._counted(), self._content.clock()
        for tier in self._tiers:
            tier.add(now, counted.minus(self._before))
        self._before = counted

    def points(self, since: float, most: int) -> Points:
        """Return at most ``most`` points from ``since`` (Unix seconds) until now.

        Their step is that of the finest samples of that time.
        """
        now = self._content.clock()
        tier = self._tier(since)
        since = max(since, now - tier.step * tier.count)
        step = tier.step * max(1, math.ceil((now - since) / most / tier.step))
        start = int(since // step) * step
        found: dict[int, Sample] = {}
        for number, sample in sorted(tier.samples.items()):
            if (at := number * tier.step) >= start:
                at = at // step * step
                found[at] = found.get(at, Sample()).plus(sample)
        return Points(start, step, list(found.items())[-most:])

    def _tier(self, since: float) -> Tier:
        """Return the finest tier that reaches back so far, else the coarsest."""
        ago = self._content.clock() - since
        fine = (tier for tier in self._tiers if ago <= tier.step * tier.count)
        return next(fine, self._tiers[-1])

    def _counted(self) -> Sample:
        total = self._metrics.total()
        return Sample(
            requests=total.outcomes.total(),
            hits=total.hits,
            client_bytes=total.bytes_to_clients,
            upstream_bytes=total.bytes_from_upstream,
            errors=total.outcomes[Outcome.ERROR],
            pulls_spent=total.pulls_spent,
            cache_bytes=self._content.usage().used_bytes,
        )

    async def load(self) -> None:
        """Load the samples of earlier processes, once."""
        async with self._loading:
            if self._is_loaded:
                return
            now = self._content.clock()
            for tier in self._tiers:
                for name in tier.notes(now):
                    await self._load(tier, name, now)
            finest, next_one, _ = self._tiers
            finest.load(next_one.rows(finest.step), now)
            self._is_loaded = True

    async def _load(self, tier: Tier, name: str, now: float) -> None:
        try:
            tier.load(as_list(await self._content.note(name)), now)
        except StorageError as error:
            log.warning("samples cannot be read", error=str(error))

    async def _save(self) -> None:
        now = self._content.clock()
        for tier in self._tiers:
            for moment in {now - KEEP_SECONDS, now} if tier.per_note else ():
                try:
                    await self._content.set_note(*tier.note(moment))
                except StorageError as error:
                    log.warning("samples cannot be stored", error=str(error))
