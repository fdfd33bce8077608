"""Redis servers, and clients of them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.fleet import connecting
from proxy.fleet import store as stores
from proxy.fleet.store import Store
from proxy.runtime.part_counters import FleetCounters
from proxy.runtime.supervisor import running_beside
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import Join, joining
from tests.fleet.together import StartReplica, starting
from tests.parts import redis as redises
from tests.parts.redis import Redis

REAL_LIMITS = {
    (connecting, "CONNECT_SECONDS"): connecting.CONNECT_SECONDS,
    (connecting, "ANSWER_SECONDS"): connecting.ANSWER_SECONDS,
    (stores, "STOPPED_SECONDS"): stores.STOPPED_SECONDS,
}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Redis take its time: on a loaded machine it, or this process, may stand still."""
    for module, name in REAL_LIMITS:
        monkeypatch.setattr(module, name, 30.0)


@pytest.fixture
def real_limits(_patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the limits of the program, for tests in which Redis does not answer."""
    for (module, name), seconds in REAL_LIMITS.items():
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def redis() -> Iterator[Redis]:
    with redises.running() as server:
        yield server


@asynccontextmanager
async def connected(
    url: str, name: str = "default", counters: FleetCounters | None = None
) -> AsyncIterator[Store]:
    """Give a store that is watched."""
    store = Store(url, name, counters or FleetCounters())
    async with running_beside(store.watch(), "watch"):
        try:
            yield store
        finally:
            await store.close()


@pytest.fixture
async def store(redis: Redis) -> AsyncIterator[Store]:
    async with connected(redis.url) as store:
        yield store


@pytest.fixture
async def replica(
    upstream: FakeUpstream, redis: Redis, clock: Clock, tmp_path: Path
) -> AsyncIterator[StartReplica]:
    """Start replicas over the fake upstream; each call may change settings."""
    async with starting(upstream, redis, clock, tmp_path) as start:
        yield start


@pytest.fixture
async def join(upstream: FakeUpstream, redis: Redis, tmp_path: Path) -> AsyncIterator[Join]:
    """Start replicas with real clocks; each call may change settings."""
    async with joining(upstream, redis, tmp_path) as join:
        yield join
