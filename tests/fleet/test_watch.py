"""Watched tags in a fleet: one replica checks, all hold the new image."""

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.fleet.together import StartReplica, acquainted
from tests.running import until
from tests.services.test_drop import tree

IMAGE = content.image("watched")


async def test_one_check_of_a_watched_tag_serves_the_fleet(
    replica: StartReplica, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.add("acme/app", IMAGE, "1")
    watch = {"images": ["acme/app:1"], "every": "30s", "referrers": False}
    replicas = [await replica(watch=watch) for _ in range(2)]
    await acquainted(*replicas)
    clock.now += 120
    for proxy in replicas:
        await until(lambda: tree(IMAGE) <= proxy.held())  # noqa: B023 - awaited at once
    assert upstream.count("HEAD", "manifest") == 1
    assert upstream.count("GET", "manifest") == 1, "the second one got it from the first"
