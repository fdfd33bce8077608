"""Tags that do not exist: the registry is asked once for all replicas, per ``negative_ttl``."""

import asyncio
import json
import time

import pytest

from proxy.fleet import store as stores
from proxy.fleet import tags
from tests.fakes import content
from tests.fakes.faults import delay, status
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import Join, asked
from tests.parts.redis import Redis
from tests.running import Proxy

OLD, NEW = content.image(1), content.image(2)
ABSENT = "/v2/app/manifests/absent"


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OLD)


async def three(join: Join, **changes: object) -> list[Proxy]:
    return [await join(**changes) for _ in range(3)]


def push(upstream: FakeUpstream) -> None:
    upstream.retag("library/app", "absent", NEW)


def requests(upstream: FakeUpstream) -> int:
    return upstream.count(ref="absent")


async def see(replica: Proxy, image: content.Image) -> None:
    """Have a replica ask the registry now."""
    assert (await replica.get(ABSENT, Cache_Control="no-cache")).body == image.manifest


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_registry_is_asked_once_for_all_replicas(
    join: Join, upstream: FakeUpstream, method: str
) -> None:
    replicas = await three(join)
    for replica in [*replicas, *replicas]:
        assert (await replica.ask(method, ABSENT)).status == 404
    assert requests(upstream) == 1
    answer = await replicas[1].get(ABSENT)
    assert json.loads(answer.body)["errors"][0]["code"] == "MANIFEST_UNKNOWN"
    assert requests(upstream) == 1, "an absence by HEAD is one for GET too"


async def test_replicas_that_ask_at_the_same_time_share_one_request(
    join: Join, upstream: FakeUpstream
) -> None:
    replicas = await three(join)
    upstream.fault(delay(0.3), reference="absent")
    answers = await asyncio.gather(*(one.get(ABSENT) for one in replicas for _ in range(3)))
    assert {answer.status for answer in answers} == {404}
    assert requests(upstream) == 1


async def test_a_push_that_one_replica_sees_is_visible_on_all_at_once(
    join: Join, upstream: FakeUpstream
) -> None:
    replicas = await three(join)
    for replica in replicas:
        assert (await replica.get(ABSENT)).status == 404
    push(upstream)
    await see(replicas[1], NEW)
    before = requests(upstream)
    for replica in replicas:
        assert (await replica.get(ABSENT)).body == NEW.manifest
    assert requests(upstream) == before


async def test_a_client_that_requires_a_check_gets_one(join: Join, upstream: FakeUpstream) -> None:
    first, second = await join(), await join()
    assert (await first.get(ABSENT)).status == 404
    push(upstream)
    assert (await second.get(ABSENT)).status == 404
    await see(second, NEW)


async def test_a_check_that_began_before_is_none_for_such_a_client(
    join: Join, upstream: FakeUpstream
) -> None:
    first, second = await join(), await join()
    slow = upstream.fault(delay(0.5), status(404), reference="absent", times=1)
    waiting = asyncio.create_task(first.get(ABSENT))
    await upstream.until(lambda: slow.used == 1)
    push(upstream)
    await see(second, NEW)
    assert (await waiting).status == 404
    assert (await first.get(ABSENT)).body == NEW.manifest


async def test_a_slow_absence_does_not_win_over_a_later_check(
    join: Join, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "LEASE_SECONDS", 0.2)
    replicas = await three(join)
    slow = upstream.fault(delay(1.0), status(404), reference="absent", times=1)
    waiting = asyncio.create_task(replicas[0].get(ABSENT))
    await upstream.until(lambda: slow.used == 1)
    push(upstream)
    assert (await replicas[1].get(ABSENT)).body == NEW.manifest
    assert not waiting.done()
    await waiting
    before = requests(upstream)
    for replica in replicas:
        assert (await replica.get(ABSENT)).body == NEW.manifest
    assert requests(upstream) == before


async def test_an_absence_ends_for_all_replicas_at_the_same_time(
    join: Join, upstream: FakeUpstream
) -> None:
    replicas = await three(join, freshness={"negative_ttl": "500ms"})
    began = time.monotonic()
    assert (await replicas[0].get(ABSENT)).status == 404
    push(upstream)
    async with asyncio.timeout(20):
        while (await replicas[1].get(ABSENT)).status == 404:
            await asyncio.sleep(0.02)
    assert time.monotonic() - began >= 0.45
    for replica in replicas:
        assert (await replica.get(ABSENT)).body == NEW.manifest


async def test_without_negative_ttl_every_replica_asks(join: Join, upstream: FakeUpstream) -> None:
    for replica in await three(join, freshness={"negative_ttl": 0}):
        assert (await replica.get(ABSENT)).status == 404
    assert requests(upstream) == 3


async def test_an_absence_from_before_the_start_of_a_replica_is_none(
    join: Join, upstream: FakeUpstream
) -> None:
    """It may have been started with other credentials, which show more."""
    assert (await (await join()).get(ABSENT)).status == 404
    push(upstream)
    assert (await (await join()).get(ABSENT)).body == NEW.manifest


async def test_absences_that_each_client_is_told_itself_are_not_shared(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    hub = {"credentials": "caller"}
    for replica in [await join(hub=hub), await join(hub=hub)]:
        assert (await replica.get(ABSENT)).status in (401, 404)
    assert not await asked(redis, "KEYS", "*tag:*")


async def test_without_redis_each_replica_asks(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    replicas = await three(join)
    assert (await replicas[0].get(ABSENT)).status == 404
    redis.kill()
    push(upstream)
    assert (await replicas[1].get(ABSENT)).body == NEW.manifest
