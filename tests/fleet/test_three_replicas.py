"""Three processes, twelve clients, one cold image, and failures meanwhile."""

import asyncio
import re
import signal
from collections.abc import Iterator

import pytest

from tests.fakes import content, faults
from tests.fakes.upstream import FakeUpstream
from tests.fleet import fleets
from tests.fleet.fleets import Fleet, client, fetch, in_loop
from tests.parts.seaweed import TestBucket

pytestmark = pytest.mark.timeout(240)

SIZE = 4_000_000
IMAGE = content.image("cold", layers=(SIZE, 1_000_000, 50_000))
BIG = IMAGE.layers[0]
APP = "library/app"


@pytest.fixture
def fleet(upstream: FakeUpstream) -> Iterator[Fleet]:
    upstream.add(APP, IMAGE)
    with fleets.running(upstream.url) as fleet:
        yield fleet


async def pull(fleet: Fleet, clients: int = 12) -> None:
    """Let clients pull the whole image, each from one replica."""

    async def one(number: int) -> None:
        url = fleet[number % len(fleet.replicas)].url
        async with client() as session:
            await fetch(session, url, f"{APP}/manifests/{IMAGE.digest}")
            blobs = (fetch(session, url, f"{APP}/blobs/{digest}") for digest in IMAGE.blobs)
            await asyncio.gather(*blobs)

    await asyncio.gather(*map(one, range(clients)))


async def test_a_cold_image_is_fetched_once(fleet: Fleet, upstream: FakeUpstream) -> None:
    upstream.fault(faults.slow(3_000_000), kind="blob")
    await pull(fleet)
    assert {digest: upstream.bodies(digest) for digest in IMAGE.blobs} == dict.fromkeys(
        IMAGE.blobs, 1
    )
    assert upstream.count("GET", "manifest") == 1


async def test_a_cold_image_goes_to_the_bucket_once(
    upstream: FakeUpstream, bucket: TestBucket
) -> None:
    """One GET that finds nothing, and one upload, for each piece and the whole fleet."""
    upstream.add(APP, IMAGE)
    upstream.fault(faults.slow(3_000_000), kind="blob")
    storage = {"storage": {"min_free": 0, "bucket": bucket.settings(min_object=1)}}
    with fleets.running(upstream.url, extra=storage) as fleet:
        await pull(fleet)
        assert {upstream.bodies(digest) for digest in IMAGE.blobs} == {1}
        wanted = {IMAGE.digest, *IMAGE.blobs}
        while not wanted <= set(await in_loop(bucket.objects)):
            await asyncio.sleep(0.1)

        async def uploads() -> int:
            stats = [await in_loop(replica.stats) for replica in fleet.replicas]
            return sum(one["cache"]["bucket_uploads"] for one in stats)

        while (counted := await uploads()) < len(wanted):  # after the object is there
            await asyncio.sleep(0.05)
    assert counted == len(wanted)


async def test_a_new_replica_serves_what_the_fleet_has(
    upstream: FakeUpstream, bucket: TestBucket
) -> None:
    upstream.add(APP, IMAGE)
    storage = {"storage": {"min_free": 0, "bucket": bucket.settings(min_object=1)}}
    with fleets.running(upstream.url, extra=storage) as fleet:
        async with client() as session:
            for place in (0, 2):
                url = fleet[place].url
                if place:
                    upstream.clear()
                await fetch(session, url, f"{APP}/manifests/latest")
                for digest in IMAGE.blobs:
                    await fetch(session, url, f"{APP}/blobs/{digest}")
    assert not upstream.requests, "the registry is not asked"


async def holder(fleet: Fleet, upstream: FakeUpstream) -> int:
    """Return the replica that fetches the large layer, once others follow it."""
    found: list[int] = []

    def is_fetching() -> bool:
        found[:] = [
            place
            for place, replica in enumerate(fleet.replicas)
            if any(
                one["bytes"] > 100_000
                for one in replica.stats()["downloads"]
                if one["size"] == SIZE
            )
        ]
        return len(found) == len(fleet.replicas)

    while not await in_loop(is_fetching):
        await asyncio.sleep(0.01)
    value = await in_loop(_lease, fleet)
    [place] = [place for place, one in enumerate(fleet.replicas) if one.url == value]
    return place


def _lease(fleet: Fleet) -> str:
    with fleet.redis.client() as redis:
        value = redis.get(f"millpond:1:default:lease:docker.io:{BIG}")
    assert isinstance(value, bytes)
    return value.decode().split(" ")[0]


async def get_big(fleet: Fleet, place: int) -> bytes:
    async with client() as session:
        return await fetch(session, fleet[place].url, f"{APP}/blobs/{BIG}")


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_holder_that_dies_or_hangs_is_followed_by_another(
    fleet: Fleet, upstream: FakeUpstream, harm: signal.Signals
) -> None:
    upstream.fault(faults.slow(1_000_000), kind="blob")
    gets = [asyncio.create_task(get_big(fleet, place)) for place in range(3)]
    dead = await holder(fleet, upstream)
    fleet[dead].signal(harm)
    alive = [get for place, get in enumerate(gets) if place != dead]
    bodies = await asyncio.gather(*alive)
    assert {len(body) for body in bodies} == {SIZE}
    gets[dead].cancel()
    assert upstream.bodies(BIG) == 2
    second = [one for one in upstream.requests if one.reference == BIG][1]
    assert re.fullmatch(r"bytes=[1-9]\d*-.*", second.headers["Range"])


async def test_clocks_that_are_wrong_by_a_minute_change_nothing(upstream: FakeUpstream) -> None:
    upstream.add(APP, IMAGE)
    upstream.fault(faults.slow(3_000_000), kind="blob")
    with fleets.running(upstream.url, (0, 60, -60)) as fleet:
        await pull(fleet)
        assert {upstream.bodies(digest) for digest in IMAGE.blobs} == {1}
        assert upstream.count("GET", "manifest") == 1
