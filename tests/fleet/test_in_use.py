"""Images in use that one replica gets a report of are spared by all."""

from collections.abc import Iterable

import pytest

from proxy.content.in_use import Feeds
from proxy.core.errors import FleetUnavailable
from proxy.fleet import store as stores
from tests.fleet.sharing import Join, asked, holds
from tests.fleet.together import fleet
from tests.parts.redis import Redis
from tests.running import Proxy

APP, OTHER = "docker.io/library/app:latest", "docker.io/library/other:1"
KEY = "millpond:1:default:in-use"


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)


def feeds(replica: Proxy) -> Feeds:
    found: Feeds = replica.app.admin._actions._services.feeds
    return found


def used(replica: Proxy) -> set[str]:
    return {str(image) for image in feeds(replica).images()}


async def all_use(replicas: Iterable[Proxy], *names: str) -> None:
    async def agree() -> bool:
        return all(used(one) == set(names) for one in replicas)

    await holds(agree)


async def test_a_report_to_one_counts_for_all_and_is_replaced(join: Join) -> None:
    replicas = [await join(), await join()]
    await feeds(replicas[0]).report("node-1", APP, 3600)
    await all_use(replicas, APP)
    await feeds(replicas[1]).report("node-2", OTHER, 3600)
    await all_use(replicas, APP, OTHER)
    await feeds(replicas[1]).report("node-1", "", 3600)
    await all_use(replicas, OTHER)
    late = await join()
    await all_use([late], OTHER)


async def test_reports_made_without_redis_are_shared_afterwards(join: Join, redis: Redis) -> None:
    replicas = [await join(), await join()]
    await feeds(replicas[0]).report("node-1", APP, 3600)
    await all_use(replicas, APP)
    redis.kill()
    await feeds(replicas[0]).report("node-2", OTHER, 3600)
    redis.start()
    await all_use(replicas, APP, OTHER)


async def test_a_report_that_redis_did_not_take_replaces_the_older_one(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = [await join(), await join()]
    await feeds(replicas[0]).report("node-1", APP, 3600)
    await all_use(replicas, APP)
    store = fleet(replicas[0]).store
    publish = store.run_all

    async def failing_once(*_: object) -> list[object]:
        monkeypatch.setattr(store, "run_all", publish)
        raise FleetUnavailable("away")

    monkeypatch.setattr(store, "run_all", failing_once)
    await feeds(replicas[0]).report("node-1", OTHER, 3600)
    await all_use(replicas, OTHER)


async def test_what_redis_should_not_have_does_no_harm(join: Join, redis: Redis) -> None:
    await asked(redis, "HSET", KEY, "broken", b"{")
    await asked(redis, "HSET", KEY, "file", b'["file", ["docker.io/library/app:1"], 1, null]')
    await asked(redis, "HSET", KEY, "wrong", b'["wrong", [7], "x", []]')
    await asked(redis, "HSET", KEY, "old", b'["old", ["docker.io/library/app:1"], 1, 5]')
    replica = await join()
    await feeds(replica).report("node-1", APP, 3600)
    await asked(redis, "PUBLISH", KEY, b"\xff")
    other = await join()
    await all_use([replica, other], APP)

    async def is_swept() -> bool:
        return not await asked(redis, "HEXISTS", KEY, "old")

    await holds(is_swept)
