"""Replicas with real clocks, which may differ, in the test's own loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import from_url

from tests.fakes.upstream import FakeUpstream
from tests.fleet.fleets import SECRET
from tests.parts.redis import Redis
from tests.running import Proxy, started

CHANNEL = "millpond:1:default:tags"

Join = Callable[..., Awaitable[Proxy]]


async def asked(redis: Redis, *command: Any) -> Any:
    """Return the answer of Redis to one command."""
    async with from_url(redis.url, protocol=2) as client:
        return await client.execute_command(*command)


LOOKS_A_SECOND = 100


async def soon(condition: Callable[[], Awaitable[bool]], within: float = 1.0) -> None:
    """Return once it is true; fail after so many seconds of this process.

    They are counted in looks, because a loaded machine may stop the process for longer.
    """
    for _ in range(round(within * LOOKS_A_SECOND)):
        if await condition():
            return
        await asyncio.sleep(1 / LOOKS_A_SECOND)
    raise AssertionError(f"not within {within} s")


async def holds(condition: Callable[[], Awaitable[bool]], within: float = 30) -> None:
    """Return once it is true."""
    async with asyncio.timeout(within):
        while not await condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def joining(upstream: FakeUpstream, redis: Redis, root: Path) -> AsyncIterator[Join]:
    """Give what starts a replica with an empty directory and a clock that is `skew` s wrong.

    `clock` replaces it.

    It returns when so many `followers` listen to Redis; all that were started unless it is given.
    """
    secret = root / "secret"
    secret.write_text(SECRET)
    async with AsyncExitStack() as stack:
        count = 0

        async def join(
            skew: float = 0.0,
            followers: int = 0,
            clock: Callable[[], float] | None = None,
            **changes: Any,
        ) -> Proxy:
            nonlocal count
            count += 1
            fleet = {"redis": redis.url, "secret_file": str(secret)} | changes.pop("fleet", {})
            replica = await stack.enter_async_context(
                started(
                    upstream,
                    root / f"joined {count}",
                    clock or (lambda: time.time() + skew),
                    {"fleet": fleet} | changes,
                )
            )

            async def follows() -> bool:
                return bool(
                    (await asked(redis, "PUBSUB", "NUMSUB", CHANNEL))[1] >= (followers or count)
                )

            await holds(follows)
            return replica

        yield join
