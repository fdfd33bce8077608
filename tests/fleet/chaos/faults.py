"""What breaks, and for how long. Each fault ends healed."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis import RedisError

from tests.fleet.chaos.site import Replica, Site
from tests.fleet.chaos.spells import Spells
from tests.fleet.chaos.world import World

STOPPED_SECONDS: Final = 10.0
SKEW_SECONDS: Final = 60.0
_LEASES: Final = "millpond:1:default:lease:docker.io:*"


@dataclass(frozen=True)
class Chaos:
    """What faults work on."""

    site: Site
    world: World
    spells: Spells
    rng: random.Random

    @property
    def anyone(self) -> Replica:
        """A replica."""
        return self.rng.choice(self.site.replicas)

    def seconds(self) -> float:
        """Return how long a fault takes."""
        return self.rng.uniform(2, 9)


Fault = Callable[[Chaos], Awaitable[None]]


async def kill_the_holder(chaos: Chaos) -> None:
    """Kill a replica in the middle of a download that the others follow."""
    async with asyncio.timeout(20):
        while (found := await asyncio.to_thread(_holder, chaos)) is None:
            await asyncio.sleep(0.05)
    await _killed(chaos, found, is_wiped=False)


async def kill_a_replica(chaos: Chaos) -> None:
    """Kill any replica, and start it again some seconds later, at times with an empty disk."""
    await _killed(chaos, chaos.anyone, is_wiped=chaos.rng.random() < 0.4)


async def stop_a_replica(chaos: Chaos) -> None:
    """SIGSTOP."""
    replica = chaos.anyone
    with chaos.spells.during("stopped", replica.address):
        replica.millpond.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED_SECONDS)
        finally:
            replica.millpond.signal(signal.SIGCONT)


async def fill_a_disk(chaos: Chaos) -> None:
    """Leave no byte on a replica's disk."""
    replica = chaos.anyone
    storage = replica.millpond.storage
    filler = storage / "filler"
    with chaos.spells.during("disk", replica.address):
        try:
            await asyncio.to_thread(_fill, filler)
            await asyncio.sleep(chaos.seconds())
        finally:
            filler.unlink(missing_ok=True)  # the disk may have been wiped


async def kill_redis(chaos: Chaos) -> None:
    """Kill Redis, which is empty afterwards."""
    with chaos.spells.during("redis"):
        await asyncio.to_thread(chaos.site.redis.kill)
        await asyncio.sleep(chaos.seconds())
        await asyncio.to_thread(chaos.site.redis.start)


async def flush_redis(chaos: Chaos) -> None:
    """FLUSHALL."""
    with chaos.spells.during("flush"), suppress(RedisError):
        await asyncio.to_thread(_flush, chaos)


async def kill_the_bucket(chaos: Chaos) -> None:
    """Kill SeaweedFS, and start it again on what it has stored."""
    with chaos.spells.during("bucket"):
        await asyncio.to_thread(chaos.site.bucket.kill)
        await asyncio.sleep(chaos.seconds())
        await asyncio.to_thread(chaos.site.bucket.start)


async def kill_both(chaos: Chaos) -> None:
    """Redis and the bucket at the same time."""
    async with asyncio.TaskGroup() as group:
        group.create_task(kill_redis(chaos))
        group.create_task(kill_the_bucket(chaos))


async def cut_from_the_others(chaos: Chaos) -> None:
    """Drop all packets between a replica and the others."""
    replica = chaos.anyone
    await _cut(chaos, replica, "cut from others", *chaos.site.others(replica))


async def cut_from_redis(chaos: Chaos) -> None:
    """Drop all packets between a replica and Redis."""
    await _cut(chaos, chaos.anyone, "cut from redis", chaos.site.redis.host)


async def cut_from_the_bucket(chaos: Chaos) -> None:
    """Drop all packets between a replica and the bucket."""
    host = chaos.site.bucket.endpoint.removeprefix("http://").partition(":")[0]
    await _cut(chaos, chaos.anyone, "cut from bucket", host)


async def cut_from_everything(chaos: Chaos) -> None:
    """Leave a replica only its clients and the registry."""
    replica, site = chaos.anyone, chaos.site
    bucket = site.bucket.endpoint.removeprefix("http://").partition(":")[0]
    with chaos.spells.during("cut from others", replica.address):
        await _cut(chaos, replica, "cut from redis", *site.others(replica), site.redis.host, bucket)


async def move_a_clock(chaos: Chaos) -> None:
    """Move a replica's clock by a minute, there and back."""
    replica = chaos.anyone
    with chaos.spells.during("clock", replica.address):
        replica.skew.set(chaos.rng.choice((-SKEW_SECONDS, SKEW_SECONDS)))
        await asyncio.sleep(chaos.seconds())
        replica.skew.set(0.0)


LANES: Final[tuple[tuple[Fault, ...], ...]] = (
    (kill_the_holder, kill_the_holder, kill_a_replica, kill_a_replica, stop_a_replica),
    (kill_redis, flush_redis, kill_the_bucket, kill_both),
    (cut_from_the_others, cut_from_redis, cut_from_the_bucket, cut_from_everything),
    (move_a_clock, fill_a_disk),
)
"""Faults of one lane come one after the other, those of two lanes also at the same time. Only one
replica is dead or stopped at a time: a balancer that retries once can do no more."""


def _holder(chaos: Chaos) -> Replica | None:
    """Return a replica that downloads a large blob now and has more than the first bytes."""
    running = {
        record.reference
        for record in chaos.world.upstream.requests[-200:]
        if record.begun and record.outcome == "open" and record.sent > 100_000
    }
    with suppress(RedisError), chaos.site.redis.client() as redis:
        for key in redis.keys(_LEASES):
            digest = key.decode().partition("docker.io:")[2]
            value = redis.get(key)
            if digest in running and chaos.world.is_large(digest) and value is not None:
                return chaos.site.of(value.decode().split()[0].removeprefix("http://"))
    return None


def _fill(filler: Path) -> None:
    """Write until there is no room."""
    with filler.open("wb", buffering=0) as opened, suppress(OSError):
        while opened.write(bytes(4096)):
            pass


def _flush(chaos: Chaos) -> None:
    with chaos.site.redis.client() as redis:
        redis.flushall()


async def _killed(chaos: Chaos, replica: Replica, *, is_wiped: bool) -> None:
    with ExitStack() as stack:
        stack.enter_context(chaos.spells.during("killed", replica.address))
        await replica.kill()
        if is_wiped:
            stack.enter_context(chaos.spells.during("wiped", replica.address))
            await replica.wipe()
        await asyncio.sleep(chaos.seconds())
        await replica.start()


async def _cut(chaos: Chaos, replica: Replica, kind: str, *hosts: str) -> None:
    with chaos.spells.during(kind, replica.address):
        await asyncio.to_thread(replica.machine.cut_off, *hosts)
        await asyncio.sleep(chaos.seconds())
        await asyncio.to_thread(replica.machine.reconnect)
