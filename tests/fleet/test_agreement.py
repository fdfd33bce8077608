"""Three real Millponds that agree on tags: under load, without Redis, and with an empty one."""

import asyncio
import time

from aiohttp import ClientSession

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.fleet.fleets import Fleet, client, fetch, in_loop, running
from tests.fleet.sharing import soon
from tests.parts.millpond import Millpond

OLD, NEW = content.image(1), content.image(2)
LATEST = "library/app/manifests/latest"
WITHIN = 1.0


async def serves(session: ClientSession, replica: Millpond, image: content.Image) -> bool:
    return await fetch(session, replica.url, LATEST) == image.manifest


async def see(session: ClientSession, replica: Millpond) -> None:
    """Have a replica ask the registry now."""
    headers = {"Cache-Control": "no-cache"}
    async with session.get(f"{replica.url}/v2/{LATEST}", headers=headers) as response:
        assert response.status == 200


async def all_serve(
    session: ClientSession, fleet: Fleet, image: content.Image, within: float
) -> None:
    async def agree() -> bool:
        return all([await serves(session, replica, image) for replica in fleet.replicas])

    await soon(agree, within)


async def test_a_moved_tag_is_served_by_all_and_never_goes_back(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OLD)
    fleets = running(upstream.url, (0, 60, -60))
    fleet = await in_loop(fleets.__enter__)
    try:
        async with client() as session:
            for replica in fleet.replicas:
                assert await serves(session, replica, OLD)
            upstream.retag("library/app", "latest", NEW)
            await see(session, fleet[0])
            await all_serve(session, fleet, NEW, WITHIN)
            await in_loop(fleet.redis.kill)
            for replica in fleet.replicas:
                assert await serves(session, replica, NEW)
            await in_loop(fleet.redis.start)
            await in_loop(fleet[2].kill)
            await in_loop(fleet[2].start)
            for _ in range(20):
                for replica in fleet.replicas:
                    assert await serves(session, replica, NEW)
                await asyncio.sleep(0.1)
    finally:
        await in_loop(fleets.__exit__, None, None, None)


async def test_one_check_per_tag_and_ttl_under_load(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OLD)
    freshness = {"tag_ttl": "1s", "stale_while_revalidate": 0}
    fleets = running(upstream.url, extra={"freshness": freshness})
    fleet = await in_loop(fleets.__enter__)
    try:
        async with client() as session:
            began = time.monotonic()
            while time.monotonic() - began < 5:
                bodies = await asyncio.gather(
                    *(fetch(session, one.url, LATEST) for one in fleet.replicas for _ in range(3))
                )
                assert set(bodies) == {OLD.manifest}
            passed = time.monotonic() - began
        assert upstream.count("GET", "manifest", "latest") == 1
        assert 3 <= upstream.count("HEAD", "manifest", "latest") <= passed + 1
    finally:
        await in_loop(fleets.__exit__, None, None, None)


async def test_a_tag_that_nobody_knows_costs_at_most_four_commands(
    upstream: FakeUpstream,
) -> None:
    tags = [f"v{number}" for number in range(50)]
    upstream.add("library/app", OLD, tags=["latest", *tags])
    fleets = running(upstream.url, (0,))
    fleet = await in_loop(fleets.__enter__)
    try:
        async with client() as session:
            assert await serves(session, fleet[0], OLD)
            for tag in tags:
                path = f"library/app/manifests/{tag}"
                assert await fetch(session, fleet[0].url, path) == OLD.manifest
            async with session.get(f"{fleet[0].url}/metrics") as response:
                text = await response.text()
        sent = {
            line.split('command="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith("millpond_fleet_redis_commands_total{")
        }
        own = sent["hmget"] + sent["claim_tag"] + sent["settle_tag"]
        assert 3 * len(tags) <= own <= 4 * (len(tags) + 1)
    finally:
        await in_loop(fleets.__exit__, None, None, None)
