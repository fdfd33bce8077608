"""Failures around three replicas while clients pull; no byte may be wrong."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from proxy.fleet.store import SILENCE_SECONDS
from tests.fakes import content, faults
from tests.fakes.upstream import FakeUpstream
from tests.fleet import fleets
from tests.fleet.fleets import Fleet, client, fetch_retrying

pytestmark = pytest.mark.timeout(300)

SIZE = 3_000_000
APP = "library/app"


def image(name: str) -> content.Image:
    return content.image(f"chaos {name}", layers=(SIZE, 200_000))


@pytest.fixture
def fleet(upstream: FakeUpstream) -> Iterator[Fleet]:
    with fleets.running(upstream.url) as fleet:
        yield fleet


class Pull:
    """Twelve clients of one cold image behind a load balancer that retries once."""

    def __init__(self, fleet: Fleet, upstream: FakeUpstream, name: str) -> None:
        self.image = image(name)
        self.urls = [one.url for one in fleet.replicas]
        upstream.add(APP, self.image, name)
        self.task = asyncio.create_task(self._run(), name="pull")

    async def _run(self) -> None:
        await asyncio.gather(*map(self._client, range(12)))

    async def _client(self, number: int) -> None:
        urls = self.urls[number % 3 :] + self.urls[: number % 3]
        async with client() as session:
            await fetch_retrying(session, urls, f"{APP}/manifests/{self.image.digest}")
            blobs = [f"{APP}/blobs/{digest}" for digest in self.image.blobs]
            await asyncio.gather(*(fetch_retrying(session, urls, blob) for blob in blobs))

    def bodies(self, upstream: FakeUpstream) -> dict[str, int]:
        return {digest: upstream.bodies(digest) for digest in self.image.blobs}


async def begun(fleet: Fleet, upstream: FakeUpstream, pull: Pull) -> None:
    """Return once the large layer is on its way."""
    layer = pull.image.layers[0]
    await upstream.until(lambda: upstream.bodies(layer) > 0, 30)
    await asyncio.sleep(0.5)


async def test_redis_killed_in_mid_download(fleet: Fleet, upstream: FakeUpstream) -> None:
    upstream.fault(faults.slow(1_000_000), kind="blob")
    pull = Pull(fleet, upstream, "killed")
    await begun(fleet, upstream, pull)
    fleet.redis.kill()
    await pull.task
    assert max(pull.bodies(upstream).values()) <= 3
    after = Pull(fleet, upstream, "away")
    await after.task
    assert max(after.bodies(upstream).values()) <= 3


async def test_redis_flushed_in_mid_download(fleet: Fleet, upstream: FakeUpstream) -> None:
    upstream.fault(faults.slow(1_000_000), kind="blob")
    pull = Pull(fleet, upstream, "flushed")
    await begun(fleet, upstream, pull)
    with fleet.redis.client() as redis:
        redis.flushall()
    await pull.task
    assert set(pull.bodies(upstream).values()) == {1}


async def test_redis_that_hangs(fleet: Fleet, upstream: FakeUpstream) -> None:
    pull = Pull(fleet, upstream, "hung")
    fleet.redis.pause()
    started = time.monotonic()
    await pull.task
    fleet.redis.resume()
    assert time.monotonic() - started < 25
    assert max(pull.bodies(upstream).values()) <= 3


async def test_replicas_killed_one_after_the_other(fleet: Fleet, upstream: FakeUpstream) -> None:
    upstream.fault(faults.slow(1_000_000), kind="blob")
    pull = Pull(fleet, upstream, "serial")
    await begun(fleet, upstream, pull)
    fleet[0].kill()
    await asyncio.sleep(1)
    fleet[0].start()
    fleet[1].signal(signal.SIGSTOP)
    with suppress(Exception):
        await asyncio.wait_for(asyncio.shield(pull.task), 8)
    fleet[1].signal(signal.SIGCONT)
    await pull.task
    assert max(pull.bodies(upstream).values()) <= 4


async def test_a_replica_that_was_stopped_does_not_blame_redis(fleet: Fleet) -> None:
    for replica in fleet.replicas:
        replica.signal(signal.SIGSTOP)
    await asyncio.sleep(SILENCE_SECONDS + 3)
    for replica in fleet.replicas:
        replica.signal(signal.SIGCONT)
    await asyncio.sleep(2)  # in which each is watched by itself
    for replica in fleet.replicas:
        assert not replica.events("Redis is unreachable, this replica works alone")
