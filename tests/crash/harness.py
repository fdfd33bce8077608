"""Kill, look, start again, and hold every promise against what is seen."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientSession

from tests.crash import disk, moments
from tests.crash.crowd import Crowd, Judgement
from tests.crash.moments import Moment
from tests.crash.operator import Operator
from tests.crash.victim import Victim
from tests.crash.world import World
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import REPOSITORY_ROOT
from tests.parts.mounts import Disk
from tests.parts.process import workdir

BUDGET: Final = 4 * 1024**2
_DISK_SIZE: Final = 48 * 1024**2
_LOOK_EVERY: Final = 0.03
FEWEST: Final = 6
"""Kills below which nothing is proven: so many there are on the slowest machine."""

_ADOPTED: Final = 1.0
"""Seconds that are waited, for all together, for blobs that lie there without a row."""

_SETTLED: Final = 3.0
"""Seconds after which a use that was answered must survive a kill."""


@dataclass(frozen=True)
class Plan:
    """How often, how long, and what is killed."""

    seed: int
    kills: int
    seconds: float = float("inf")
    """No life is begun after this time, once there have been `FEWEST` kills."""
    clients: int = 6
    tree: Path = REPOSITORY_ROOT
    """Where the `proxy/` lies that is put to the test."""
    cuts_power: bool = False
    """Take the power from the disk at every kill. Needs root."""


@dataclass
class Report:
    """What was done, for people and for assertions that it was not nothing."""

    seed: int
    kills: Counter[Moment] = field(default_factory=Counter)
    met: Counter[Moment] = field(default_factory=Counter)
    """Kills for which the moment really came."""
    answers: Counter[str] = field(default_factory=Counter)
    quiet: int = 0
    """Lives that were looked at in rest before clients came."""
    confirmed: int = 0
    """Pieces that were held before a kill and served after it without upstream."""
    evictions: int = 0
    fullest: int = 0
    """Most bytes that were ever seen on the disk."""
    looks: int = 0
    pins: int = 0
    """Pins, added or removed, that were acknowledged."""
    kept: int = 0
    """Pins whose whole image was seen to be held, to be looked for from then on."""
    slowest_start: float = 0.0

    def __str__(self) -> str:
        kills = ", ".join(f"{n} {moment.value}" for moment, n in self.kills.most_common())
        answers = ", ".join(f"{n} {kind}" for kind, n in self.answers.most_common())
        return "\n".join(
            (
                f"seed {self.seed}: {self.kills.total()} kills: {kills}",
                f"  answers: {answers}; {self.evictions} evictions seen",
                f"  {self.fullest} bytes of {BUDGET} at the fullest of {self.looks} looks",
                f"  {self.confirmed} pieces confirmed in {self.quiet} quiet starts",
                f"  {self.pins} pins acknowledged, {self.kept} of them with all content",
                f"  slowest start {self.slowest_start:.1f} s",
            )
        )


class Broken(AssertionError):
    """A promise was not kept."""


async def run(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Report:
    """Do it; raises `Broken` with the seed, the promise and the log's end."""
    end = time.monotonic() + plan.seconds
    try:
        async with _besieged(plan) as siege:
            while siege.report.kills.total() < plan.kills and (
                time.monotonic() < end or siege.report.kills.total() < FEWEST
            ):
                await siege.one_life()
                say(f"{siege.report.kills.total()} kills")
            await siege.last_life()
    except ExceptionGroup as group:
        broken = group.subgroup(Broken)
        raise broken.exceptions[0] if broken else group from None
    return siege.report


@asynccontextmanager
async def _besieged(plan: Plan) -> AsyncIterator["Siege"]:
    async with AsyncExitStack() as stack:
        root = stack.enter_context(workdir("crash"))
        upstream = await stack.enter_async_context(FakeUpstream())
        power = Disk(root / "disk", _DISK_SIZE) if plan.cuts_power else None
        storage = (power.place if power else root) / "storage"
        settings = {"storage": {"max_size": BUDGET, "path": str(storage)}}
        victim = Victim(root, plan.tree, upstream.url, settings, power)
        stack.push_async_callback(victim.close)
        client = await stack.enter_async_context(victim.client())
        rng = random.Random(plan.seed)
        world = World(upstream, random.Random(rng.random()), BUDGET)
        siege = Siege(plan, world, victim, client)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(task) for task in siege.tasks(plan.clients)]
            try:
                yield siege
            finally:
                for task in running:
                    task.cancel()


class Siege:
    """One storage directory, its process, and those who pull from it."""

    def __init__(self, plan: Plan, world: World, victim: Victim, client: ClientSession) -> None:
        self.report = Report(plan.seed)
        self.victim = victim
        self.judgement = Judgement(answers=self.report.answers)
        self.crowd = Crowd(client, world, self.judgement)
        self.operator = Operator(victim, world, self.crowd)
        self._world = world
        self._cuts_power = plan.cuts_power
        self._client = client
        self._rng = random.Random(plan.seed)
        self._still_there = asyncio.Lock()
        """Held by whoever looks at the disk, and by whoever takes it away."""
        self._dead: disk.Look | None = None
        self._died = time.time()
        self._patient_until = 0.0

    def tasks(self, clients: int) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield what goes on all the time."""
        works = [self.crowd.pull_for_ever] * clients
        for work in (*works, self.operator.pin_for_ever, self.operator.meddle_for_ever):
            yield work(random.Random(self._rng.random()))
        yield self.look_for_ever()

    async def one_life(self) -> None:
        """Start it, let it be used, end it, look at what it leaves."""
        rng = self._rng
        moment = rng.choice(list(Moment))
        quiet = self._dead is not None and moment is not Moment.START and rng.random() < 0.2
        if quiet:
            await self._silence()
        self.victim.begin()
        if moment is Moment.START:
            await asyncio.sleep(rng.uniform(0, max(0.5, 1.2 * self.report.slowest_start)))
        else:
            await self._awake()
            if quiet:
                await self._confirm()
            self.crowd.gate.set()
            await self._until(moment)
        await self._end(moment)

    async def last_life(self) -> None:
        """Start it once more, confirm what it holds, and that it keeps a second one away."""
        await self._silence()
        self.victim.begin()
        await self._awake()
        await self._confirm()
        status, said = await self.victim.second()
        if status != 2 or "in use by another Millpond" not in said or "Traceback" in said:
            self._fail(f"a second process ended with {status} and said: {said}")
        async with self._client.get("/-/healthz") as answer:
            if answer.status != 200:
                self._fail("the first process was disturbed by a second one")
        await self._end(Moment.TERMINATED)
        self.report.pins, self.report.kept = self.operator.acknowledgements, self.operator.filled

    async def look_for_ever(self) -> None:
        """Look at the disk all the time, the process standing still meanwhile."""
        held: set[str] = set()
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            promised = dict(self.operator.kept)
            async with self._still_there:
                seen = await asyncio.to_thread(self._frozen_look)
                if self.victim.is_cut:
                    continue
            self.report.evictions += len(held - seen.held.keys())
            held = set(seen.held)
            self._weigh(seen)
            self._compare(promised, seen)
            self._blame()

    def _frozen_look(self) -> disk.Look:
        with self.victim.frozen():
            return disk.look(self.victim.storage)

    def _weigh(self, seen: disk.Look) -> None:
        self.report.looks += 1
        self.report.fullest = max(self.report.fullest, seen.bytes)
        if seen.bytes > BUDGET:
            state = "running" if self.victim.is_alive else "killed"
            self._fail(f"{state}, it takes {seen.bytes} bytes of {BUDGET}: {_sizes(seen)}")

    def _compare(self, promised: Mapping[str, frozenset[str]], seen: disk.Look) -> None:
        """What was pinned before a look, and still is, must have been seen.

        Not after power cuts: where a pinned tag leads to is not synced, though its content is.
        """
        if self._cuts_power:
            return
        for pin, digests in promised.items():
            if pin in self.operator.kept and not digests <= seen.held.keys():
                self._fail(f"{pin} is pinned and lacks {sorted(digests - seen.held.keys())}")

    async def _silence(self) -> None:
        """Hold the clients back; what they have asked for ends with the process that is dead."""
        self.crowd.gate.clear()
        while self.crowd.busy:
            await asyncio.sleep(0.01)

    async def _awake(self) -> None:
        """Wait until it answers; what the last one left in the spool must be gone by then."""
        took = await self.victim.answers()
        self.report.slowest_start = max(self.report.slowest_start, took)
        seen = await asyncio.to_thread(self._frozen_look)
        left = [name for name, at in seen.spooled.items() if at < self._died]
        if left:
            self._fail(f"started, its spool still has {left}")
        wrong = await self.operator.settle()
        if wrong:
            self._fail(wrong)

    async def _confirm(self) -> None:
        """With nobody else about: all that was held is held, and served without upstream."""
        assert self._dead is not None
        self.report.quiet += 1
        stats = await self._at_rest()
        seen = disk.look(self.victim.storage)
        lost = self._dead.held.keys() - seen.held.keys()
        if len(lost) > stats["cache"]["evictions"]:
            self._fail(f"lost without an eviction: {sorted(lost)}")
        self._patient_until = time.monotonic() + _ADOPTED
        wares = [ware for ware in self._world.wares if ware.digests & seen.held.keys()]
        for ware in self._rng.sample(wares, min(6, len(wares))):
            for digest in sorted(ware.digests & seen.held.keys()):
                await self._served_from_here(ware.repo, digest, seen.held[digest])

    async def _at_rest(self) -> dict[str, Any]:
        """Return the stats once they agree with the disk; fail when they never do."""
        end = time.monotonic() + 30
        while True:
            async with self._client.get("/-/stats") as answer:
                stats: dict[str, Any] = await answer.json()
            seen = disk.look(self.victim.storage)
            told = (stats["cache"]["files"], stats["cache"]["bytes"])
            busy = stats["downloads"] or seen.spooled
            if not busy and told == (len(seen.held), seen.bytes):
                return stats
            if time.monotonic() > end:
                self._fail(f"the disk has {seen.bytes} bytes: {_sizes(seen)}; it says {stats}")
            await asyncio.sleep(0.01)

    async def _served_from_here(self, repo: str, digest: str, since: float) -> None:
        upstream = self._world.upstream
        known = self.judgement.hits.get((repo, digest), 0.0)
        if known <= since and not await self._is_adopted(repo, digest):
            return
        upstream.clear()
        if not await self.crowd.fetch(repo, digest):
            self._fail(f"{repo} {digest} is held and was not served")
        asked = [(request.method, request.path) for request in upstream.requests]
        was_hit = since < known < self._died - _SETTLED
        kind = "manifest" if digest in self._world.manifests else "blob"
        about = f"{repo} {kind} {digest}, there since {since}, last hit {known}, died {self._died}"
        if upstream.count("GET", ref=digest):
            self._fail(f"{about}, was held and is fetched again: {asked}")
        if was_hit and not self._cuts_power and upstream.count(ref=digest):
            self._fail(f"{about}, is not known to be in its repository any more: {asked}")
        self.report.confirmed += 1

    async def _is_adopted(self, repo: str, digest: str) -> bool:
        """Wait for what may still lie there without a row; no if that tells nothing.

        It is asked for as held by this repository alone, which it may not be known to be.
        """
        kind = "manifests" if digest in self._world.manifests else "blobs"
        path, headers = f"/v2/{repo}/{kind}/{digest}", {"Cache-Control": "only-if-cached"}
        while True:
            async with self._client.head(path, headers=headers) as answer:
                if answer.status == 200:
                    return True
            if time.monotonic() > self._patient_until:
                return False
            await asyncio.sleep(0.02)

    async def _until(self, moment: Moment) -> None:
        """Wait for the moment, and end the process in it."""
        strike, met = self.victim.strike, True
        match moment:
            case Moment.STORED | Moment.EVICTED | Moment.SPOOLED:
                met = await asyncio.to_thread(moments.watch, self.victim.storage, moment, strike)
            case Moment.ACKNOWLEDGED:
                met = await moments.happened(self.judgement.acknowledged)
            case Moment.PINNED:
                met = await moments.happened(self.operator.acknowledged)
            case _:
                await moments.some_time(self._rng, 0.6)
        self.report.met[moment] += met

    async def _end(self, moment: Moment) -> None:
        """End it if it has not been yet; check what is left behind."""
        kindly = moment is Moment.TERMINATED
        if kindly:
            self.victim.signal(signal.SIGTERM)
        else:
            self.victim.strike()
        async with self._still_there:
            status = await self.victim.ended()
        self._died = time.time()
        self.report.kills[moment] += 1
        if status != (0 if kindly else -signal.SIGKILL):
            self._fail(f"it ended with status {status} {moment.value}")
        wrong = await asyncio.to_thread(disk.misnamed, self.victim.storage)
        if wrong:
            self._fail(f"ended {moment.value}: {wrong}")
        self._dead = disk.look(self.victim.storage)
        self._weigh(self._dead)
        self._compare(self.operator.kept, self._dead)
        if kindly and self._dead.spooled:
            self._fail(f"stopped in good order, its spool has {sorted(self._dead.spooled)}")
        if "Traceback" in self.victim.tail(1_000_000):
            self._fail("it logged a traceback")
        self._blame()
        self._world.upstream.clear()

    def _blame(self) -> None:
        wrong = [*self.judgement.wrong, *self.operator.wrong]
        if wrong:
            self._fail("\n".join(wrong))

    def _fail(self, what: str) -> None:
        kills = self.report.kills.total()
        raise Broken(f"seed {self.report.seed}, {kills} kills: {what}\n{self.victim.tail()}")


def _sizes(seen: disk.Look) -> str:
    return f"{len(seen.held)} blobs, {len(seen.spooled)} in the spool {sorted(seen.spooled)}"
