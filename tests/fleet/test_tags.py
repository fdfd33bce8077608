"""Tags on which replicas agree: real Redis, several replicas in the test's own loop."""

import asyncio
import json
import time
from statistics import median

import pytest
from redis.asyncio import from_url

from proxy.fleet import store as stores
from proxy.fleet import tag_store, tags
from tests.fakes import content
from tests.fakes.faults import delay, status
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import CHANNEL, Join, asked, soon
from tests.fleet.together import fleet
from tests.parts.redis import Redis
from tests.running import Proxy, until

OLD, NEW = content.image(1), content.image(2)
LATEST = "/v2/app/manifests/latest"
WITHIN = 1.0
"""Seconds in which all replicas agree."""


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OLD)


async def serves(replica: Proxy, image: content.Image) -> bool:
    return (await replica.get(LATEST)).body == image.manifest


async def records(replica: Proxy) -> bytes:
    """Return what a replica serves without a check."""
    return (await replica.get(LATEST, Cache_Control="only-if-cached")).body


async def all_serve(replicas: list[Proxy], image: content.Image, within: float = WITHIN) -> None:
    async def agree() -> bool:
        return all([await serves(replica, image) for replica in replicas])

    await soon(agree, within)


async def see(replica: Proxy, image: content.Image) -> None:
    """Have a replica ask the registry now."""
    answer = await replica.get(LATEST, Cache_Control="no-cache")
    assert answer.body == image.manifest


async def three(join: Join) -> list[Proxy]:
    replicas = [await join(), await join(), await join()]
    for replica in replicas:
        assert await serves(replica, OLD)
    return replicas


async def test_a_tag_that_one_replica_sees_move_moves_on_all(
    join: Join, upstream: FakeUpstream
) -> None:
    replicas = await three(join)
    upstream.retag("library/app", "latest", NEW)
    await see(replicas[0], NEW)
    await all_serve(replicas, NEW)


async def test_one_request_for_an_unknown_tag_serves_the_fleet(
    join: Join, upstream: FakeUpstream
) -> None:
    await three(join)
    assert upstream.count("GET", "manifest", "latest") == 1
    assert upstream.count("HEAD", "manifest", "latest") == 0


async def test_replicas_that_ask_at_once_share_one_request(
    join: Join, upstream: FakeUpstream
) -> None:
    replicas = [await join(), await join(), await join()]
    upstream.fault(delay(0.3), method="GET", reference="latest")
    answers = await asyncio.gather(*(one.get(LATEST) for one in replicas for _ in range(5)))
    assert {answer.body for answer in answers} == {OLD.manifest}
    assert upstream.count("GET", "manifest", "latest") == 1


async def test_one_check_serves_the_fleet(join: Join, upstream: FakeUpstream) -> None:
    freshness = {"tag_ttl": "1s", "stale_while_revalidate": 0}
    replicas = [await join(freshness=freshness) for _ in range(3)]
    began = time.monotonic()
    while time.monotonic() - began < 4:
        answers = await asyncio.gather(*(one.get(LATEST) for one in replicas for _ in range(3)))
        assert {answer.body for answer in answers} == {OLD.manifest}
    passed = time.monotonic() - began
    assert 2 <= upstream.count("HEAD", "manifest", "latest") <= passed + 1


async def test_a_waiting_replica_asks_itself_if_the_other_one_hangs(
    join: Join, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "LEASE_SECONDS", 0.3)
    replicas = [await join(), await join()]
    gate = upstream.hold(reference="latest", times=1)
    hung = asyncio.create_task(replicas[0].get(LATEST))
    await upstream.until(lambda: upstream.count(ref="latest") == 1)
    assert await serves(replicas[1], OLD)
    gate.set()
    assert (await hung).body == OLD.manifest


async def test_a_check_that_fails_is_tried_by_another_replica(
    join: Join, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = [await join(), await join()]
    upstream.fault(delay(0.2), status(503), reference="latest", times=1)
    for module in (tags, tag_store):  # no lease ends in time
        monkeypatch.setattr(module, "LEASE_SECONDS", 60.0)
    first = asyncio.create_task(replicas[0].get(LATEST))
    await upstream.until(lambda: upstream.count(ref="latest") == 1)
    async with asyncio.timeout(30):
        assert await serves(replicas[1], OLD)
    assert (await first).status == 502


async def test_a_replica_with_an_empty_disk_knows_the_tags(
    join: Join, upstream: FakeUpstream
) -> None:
    assert await serves(await join(), OLD)
    late = await join()
    upstream.clear()
    assert (await late.head(LATEST)).headers["Docker-Content-Digest"] == OLD.digest
    assert upstream.count() == 0


async def test_a_replica_with_an_empty_disk_knows_where_a_tag_has_pointed(
    join: Join, upstream: FakeUpstream
) -> None:
    first, second = await join(), await join(60.0)
    assert await serves(first, OLD)
    upstream.retag("library/app", "latest", NEW)
    await see(first, NEW)
    began = time.time()
    assert await serves(second, NEW)
    history = await second.history("docker.io", "library/app", "latest")
    assert [entry.digest for entry in history] == [OLD.digest, NEW.digest]
    assert abs(history[0].first_seen - (began + 60.0)) < 10, "by its own clock"


async def test_skewed_clocks_order_nothing(join: Join, upstream: FakeUpstream) -> None:
    early, late = await join(-60.0), await join(60.0)
    assert await serves(late, OLD)
    assert await serves(early, OLD)
    upstream.retag("library/app", "latest", NEW)
    await see(early, NEW)
    await all_serve([early, late], NEW)
    upstream.retag("library/app", "latest", OLD)
    await see(late, OLD)
    await all_serve([early, late], OLD)


async def test_a_clock_that_is_set_back_makes_no_record_newer(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    wrong = [0.0]
    first = await join(clock=lambda: time.time() + wrong[0])
    second = await join()
    for replica in (first, second):
        assert await serves(replica, OLD)
    redis.kill()
    upstream.retag("library/app", "latest", NEW)
    await see(second, NEW)
    wrong[0] = -60.0
    redis.start()
    async with asyncio.timeout(30):
        while await records(first) == OLD.manifest:
            assert await records(second) == NEW.manifest
            await asyncio.sleep(0.01)
    assert await records(second) == NEW.manifest


async def test_a_slow_answer_does_not_win_over_a_later_check(
    join: Join, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "LEASE_SECONDS", 0.3)
    replicas = await three(join)
    late = upstream.fault(delay(1.5), method="HEAD", reference="latest", times=1)
    slow = asyncio.create_task(replicas[0].get(LATEST, Cache_Control="no-cache"))
    await upstream.until(lambda: late.used == 1)
    upstream.retag("library/app", "latest", NEW)
    await see(replicas[1], NEW)
    await all_serve(replicas, NEW)
    late_answer = await slow
    assert late_answer.body == NEW.manifest, dict(late_answer.headers)
    await all_serve(replicas, NEW)


async def test_a_flushed_redis_makes_no_tag_go_back(
    join: Join, upstream: FakeUpstream, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "COMPARE_SECONDS", 0.2)
    replicas = await three(join)
    upstream.retag("library/app", "latest", NEW)
    await see(replicas[0], NEW)
    await all_serve(replicas, NEW)
    await asked(redis, "FLUSHALL")
    async with asyncio.timeout(30):
        while not await asked(redis, "KEYS", "*tag:*"):
            await asyncio.sleep(0.02)
    upstream.clear()
    assert await serves(await join(), NEW)
    assert upstream.count("HEAD") == upstream.count("GET", "manifest", "latest") == 0


async def test_an_old_fact_in_an_empty_redis_is_replaced(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    """A replica that was cut off may publish what it still believes."""
    replicas = await three(join)
    facts = await asked(redis, "KEYS", "*tag:*")
    old = await asked(redis, "DUMP", facts[0])
    upstream.retag("library/app", "latest", NEW)
    await see(replicas[0], NEW)
    await all_serve(replicas, NEW)
    await asked(redis, "FLUSHALL")
    await asked(redis, "RESTORE", facts[0], "0", old)
    await asked(redis, "PUBLISH", CHANNEL, message(OLD, time.time() - 100))
    async with asyncio.timeout(30):
        while (await asked(redis, "HGET", facts[0], "digest")).decode() != NEW.digest:
            await asyncio.sleep(0.02)
    assert await serves(replicas[1], NEW)


def message(image: content.Image, at: float) -> bytes:
    names = {"upstream": "docker.io", "repo": "library/app", "tag": "latest"}
    kind = "application/vnd.oci.image.manifest.v1+json"
    fact = {"digest": image.digest, "type": kind, "size": len(image.manifest), "at": at}
    return json.dumps(names | fact).encode()


async def test_after_redis_was_away_all_tags_are_compared(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    replicas = await three(join)
    redis.kill()
    upstream.retag("library/app", "latest", NEW)
    await see(replicas[0], NEW)
    assert await serves(replicas[1], OLD), "each works alone"
    redis.start()
    await all_serve(replicas, NEW, within=20)


async def test_without_redis_a_hit_and_a_check_cost_no_time(
    join: Join, upstream: FakeUpstream, redis: Redis, real_limits: None
) -> None:
    replicas = await three(join)
    redis.pause()
    await see(replicas[0], OLD)
    taken = []
    for _ in range(20):
        began = time.monotonic()
        await see(replicas[0], OLD)
        taken.append(time.monotonic() - began)
    assert median(taken) < stores.ANSWER_SECONDS / 2, taken
    redis.resume()


async def test_a_hit_sends_no_command(join: Join, redis: Redis) -> None:
    replica = await join()
    assert await serves(replica, OLD)
    sent = await commands(redis)
    for _ in range(50):
        assert await serves(replica, OLD)
    assert await commands(redis) - sent <= {"ping", "time"}


async def test_a_crowd_that_asks_for_an_unknown_tag_sends_as_many_commands_as_one_client(
    join: Join, upstream: FakeUpstream
) -> None:
    """Also clients that come while the registry is asked."""
    replica = await join()
    registry = upstream.hold(kind="manifest")
    crowd = [asyncio.create_task(replica.get(LATEST)) for _ in range(10)]
    await until(lambda: upstream.count("GET", "manifest") == 1)
    crowd += [asyncio.create_task(replica.get(LATEST)) for _ in range(10)]
    for _ in crowd:  # meanwhile the requests of the second half arrive
        await replica.get("/v2/")
    registry.set()
    assert {(await get).body for get in crowd} == {OLD.manifest}
    sent = fleet(replica).store._counters.redis_commands
    assert {name: sent[name] for name in ("hmget", "claim_tag", "settle_tag")} == {
        "hmget": 1,
        "claim_tag": 1,
        "settle_tag": 1,
    }


async def commands(redis: Redis) -> set[str]:
    """Return the commands that Redis has run more often than once a second, by name."""
    async with from_url(redis.url, protocol=2) as client:
        stats = await client.info("commandstats")
        await client.config_resetstat()
    return {name.removeprefix("cmdstat_") for name in stats} - {"info", "config|resetstat"}


async def test_a_deleted_tag_is_not_learnt_by_others(join: Join, upstream: FakeUpstream) -> None:
    first = await join()
    assert await serves(first, OLD)
    upstream.remove_tag("library/app", "latest")
    assert (await first.get(LATEST, Cache_Control="no-cache")).status == 404
    assert (await (await join()).get(LATEST)).status == 404
    upstream.retag("library/app", "latest", NEW)
    await see(first, NEW)
    assert await serves(await join(), NEW)


async def test_tags_that_each_client_asks_for_itself_are_not_shared(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    hub = {"credentials": "caller"}
    for replica in [await join(hub=hub), await join(hub=hub)]:
        assert (await replica.get(LATEST)).status in (200, 401)
    assert not await asked(redis, "KEYS", "*tag:*")
