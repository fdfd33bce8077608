"""Replicas in the test's own loop that share a real Redis and a fake registry."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from proxy.app.fleet import Fleet
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.fleet.fleets import SECRET
from tests.parts.redis import Redis
from tests.running import Proxy, started

StartReplica = Callable[..., Awaitable[Proxy]]


@asynccontextmanager
async def starting(
    upstream: FakeUpstream, redis: Redis, clock: Clock, root: Path
) -> AsyncIterator[StartReplica]:
    """Give what starts replicas; each has a directory of its own, and may change settings."""
    secret = root / "secret"
    secret.write_text(SECRET)
    count = 0
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Proxy:
            nonlocal count
            count += 1
            fleet = {"redis": redis.url, "secret_file": str(secret)} | settings.pop("fleet", {})
            changes = {"fleet": fleet, **settings}
            replica = started(upstream, root / f"replica {count}", clock, changes)
            return await stack.enter_async_context(replica)

        yield start


def fleet(proxy: Proxy) -> Fleet:
    """Return what a replica shares with the others."""
    assert proxy.app.fleet is not None
    return proxy.app.fleet


async def acquainted(*proxies: Proxy) -> None:
    """Return once every replica knows all others."""
    for _ in range(2):
        for proxy in proxies:
            await fleet(proxy).replicas._beat_once()
    for proxy in proxies:
        assert len(fleet(proxy).replicas.others()) == len(proxies) - 1
