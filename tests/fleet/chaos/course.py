"""One course of chaos: clients pull, things break, and every promise is held against what was seen."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.fakes.upstream import FakeUpstream
from tests.fleet.chaos import site as sites
from tests.fleet.chaos.crowd import Crowd, Judgement
from tests.fleet.chaos.faults import LANES, Chaos, Fault
from tests.fleet.chaos.machines import HERE
from tests.fleet.chaos.spells import Spells
from tests.fleet.chaos.world import Sent, World

BODIES: Final = 1.1
"""Bodies from the registry for a blob while Redis is there, on average."""

ALONE: Final = frozenset({"redis", "flush", "cut from redis"})
"""Faults of Redis: each replica may fetch for itself."""

CUT_OFF: Final = frozenset({"cut from others"})
NO_BUCKET: Final = frozenset({"bucket", "cut from bucket"})
IN_BUCKET: Final = 4096
"""Smaller blobs are not in the bucket; replicas give them to each other."""

_LATE: Final = 2.0
"""Seconds after the last request for a blob in which its download may still run."""


@dataclass(frozen=True)
class Plan:
    """How long, and which faults."""

    seed: int
    seconds: float
    clients: int = 12
    only: Sequence[str] = ()
    """Names of faults; all if empty."""


@dataclass
class Report:
    """What was done, and what was found."""

    seed: int
    seconds: float = 0.0
    pulls: int = 0
    requests: int = 0
    megabytes: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    broken_bodies: int = 0
    went_back_while_apart: int = 0
    slowest_pull: float = 0.0
    blobs: int = 0
    """Blobs that the registry has sent, while all replicas reached Redis."""
    blobs_alone: int = 0
    """And those of which it has sent something while one did not."""
    bodies: float = 0.0
    """Bodies for each of the former, on average."""
    bodies_alone: float = 0.0
    """Bodies for each of the latter."""
    most_bodies: float = 0.0
    more: dict[str, str] = field(default_factory=dict)
    """Blobs with more bodies than they should have: who has asked when, and what was broken."""
    sources: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it for people and for tests."""
        return vars(self)


async def run(plan: Plan, keep: Path | None = None) -> Report:
    """Have chaos for a while; return what was found. Needs a network namespace of its own.

    `keep` is where the logs go.
    """
    rng = random.Random(plan.seed)
    async with FakeUpstream(registry_host=HERE, token_host=HERE, cdn_host=HERE) as upstream:
        context = sites.running(upstream.url)
        site = await asyncio.to_thread(context.__enter__)
        try:
            chaos = Chaos(site, World(upstream, rng), Spells(), rng)
            return await _Course(plan, chaos).run()
        finally:
            if keep is not None:
                site.keep_logs(keep)
            await asyncio.to_thread(context.__exit__, None, None, None)


class _Course:
    def __init__(self, plan: Plan, chaos: Chaos) -> None:
        self._plan = plan
        self._chaos = chaos
        self._judgement = Judgement()
        self._report = Report(plan.seed)

    async def run(self) -> Report:
        chaos, plan, began = self._chaos, self._plan, time.monotonic()
        crowd = Crowd(chaos.site.front.url, chaos.world, chaos.spells, self._judgement)
        running = [
            asyncio.create_task(chaos.world.run(), name="world"),
            asyncio.create_task(crowd.lateness.watch(), name="lateness"),
        ]
        for number in range(plan.clients):
            rng = random.Random(f"{plan.seed} {number}")
            running.append(asyncio.create_task(crowd.pull_forever(rng), name="client"))
        lanes = [self._lane(faults, began + plan.seconds) for faults in LANES]
        await self._beside(running, asyncio.gather(*lanes))
        await self._beside(running, asyncio.sleep(3))  # after the last fault
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._report.seconds = round(time.monotonic() - began, 1)
        self._conclude()
        return self._report

    async def _beside(self, running: list[asyncio.Task[None]], work: Any) -> None:
        """Do work; a client or a lane that ends with an error ends everything."""
        task = asyncio.ensure_future(work)
        await asyncio.wait([*running, task], return_when=asyncio.FIRST_COMPLETED)
        for each in running:
            if each.done():
                task.cancel()
                each.result()
        await task

    async def _lane(self, faults: tuple[Fault, ...], end: float) -> None:
        """Break things one after the other, each kind about as often."""
        rng, only = self._chaos.rng, self._plan.only
        chosen = [fault for fault in faults if not only or fault.__name__ in only]
        while chosen:
            for fault in rng.sample(chosen, len(chosen)):
                await asyncio.sleep(rng.uniform(2, 10))
                if time.monotonic() > end:
                    return
                self._report.faults[fault.__name__] += 1
                await fault(self._chaos)

    def _conclude(self) -> None:
        report, judgement = self._report, self._judgement
        report.pulls, report.requests = judgement.pulls, judgement.requests
        report.megabytes = judgement.bytes // 1_000_000
        report.broken_bodies = judgement.broken
        report.went_back_while_apart = judgement.went_back
        report.slowest_pull = round(judgement.slowest, 1)
        report.sources = judgement.sources
        report.wrong = judgement.wrong
        self._count_bodies()

    def _count_bodies(self) -> None:
        """Judge what the registry has sent of each blob.

        A blob counts as alone if a replica could not see the others through Redis meanwhile, or
        could neither reach them nor find it in the bucket. Then one with a full disk passes each
        pull through, as a single machine does.
        """
        report, replicas = self._report, len(self._chaos.site.replicas)
        together: list[float] = []
        alone: list[float] = []
        for digest, sent in self._chaos.world.traffic().items():
            apart = any(self._is_alone(digest, one.at) for one in sent)
            both = sum(one.bodies for one in sent)
            (alone if apart else together).append(both)
            allowed = BODIES if not apart else replicas
            if both > allowed:
                report.more[digest[:19]] = self._said(digest, sent)
            first, last = sent[0].at, sent[-1].at + _LATE
            lost = times_lost(self._chaos.spells, self._chaos.world.sizes[digest], first, last)
            is_full = bool(self._chaos.spells.between(first, last, frozenset({"disk"})))
            if both > replicas + lost and not (apart and is_full):
                report.wrong.append(f"{digest}: {self._said(digest, sent)}")
        report.blobs, report.blobs_alone = len(together), len(alone)
        report.bodies, report.bodies_alone = _mean(together), _mean(alone)
        report.most_bodies = round(max([*together, *alone], default=0.0), 2)
        if report.bodies > BODIES:
            report.wrong.append(f"{report.bodies} bodies from the registry for each blob")

    def _is_alone(self, digest: str, at: float) -> bool:
        """Return True if a replica could not know at that time what the others have."""
        has, size = self._chaos.spells.between, self._chaos.world.sizes[digest]
        if has(at, at, ALONE):
            return True
        is_in_bucket = size >= IN_BUCKET and not has(at, at, NO_BUCKET)
        return bool(has(at, at, CUT_OFF)) and not is_in_bucket

    def _said(self, digest: str, sent: Sequence[Sent]) -> str:
        size = self._chaos.world.sizes[digest]
        first, last = sent[0].at, sent[-1].at
        met = [
            f"{spell.kind} {spell.place.rpartition('.')[2]} {spell.began - first:+.1f} to "
            f"{spell.ended - first:+.1f}"
            for spell in self._chaos.spells.all
            if spell.began <= last + _LATE and spell.ended >= first - _LATE
        ]
        asked = [f"{one.by} {one.at - first:+.1f} {one.bodies:.2f}" for one in sent]
        return f"{size} bytes: {', '.join(asked)}; {', '.join(met)}"


def times_lost(spells: Spells, size: int, began: float, ended: float) -> int:
    """Return how often a replica took away what perhaps no other one had, nor the bucket.

    Its disk was emptied, or it was killed before it could store the blob in the bucket.
    """
    wiped = spells.between(began, ended, frozenset({"wiped"}))
    killed = [
        spell
        for spell in spells.between(began, ended, frozenset({"killed"}))
        if not any(one.place == spell.place and one.began >= spell.began for one in wiped)
        and (size < IN_BUCKET or spells.between(began, spell.began, NO_BUCKET))
    ]
    return len(wiped) + len(killed)


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0
