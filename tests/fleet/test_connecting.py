"""A fleet whose Redis is watched by a real Sentinel."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.core.errors import FleetUnavailable
from proxy.fleet import store as stores
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.fleet.conftest import connected
from tests.fleet.sharing import CHANNEL, asked, holds, joining, soon
from tests.parts import sentinel
from tests.parts.sentinel import Watched
from tests.running import Proxy

OLD, NEW, NEWEST = content.image(1), content.image(2), content.image(3)
LATEST = "/v2/app/manifests/latest"


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)


@pytest.fixture
def watched() -> Iterator[Watched]:
    with sentinel.running() as watched:
        yield watched


async def served(replica: Proxy) -> bytes:
    return (await replica.get(LATEST)).body


async def test_replicas_follow_the_new_master(
    watched: Watched, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.add("library/app", OLD)
    async with joining(upstream, watched.first, tmp_path) as join:
        replicas = [await join(fleet={"redis": watched.url}) for _ in range(2)]
        assert {await served(one) for one in replicas} == {OLD.manifest}
        await asyncio.to_thread(watched.first.kill)
        upstream.retag("library/app", "latest", NEW)
        answer = await replicas[0].get(LATEST, Cache_Control="no-cache")
        assert answer.body == NEW.manifest, "without Redis each works alone"
        assert await served(replicas[1]) == OLD.manifest

        async def agree() -> bool:
            return await served(replicas[1]) == NEW.manifest

        await holds(agree, within=60)
        assert (await asked(watched.second, "PUBSUB", "NUMSUB", CHANNEL))[1] == 2
        upstream.retag("library/app", "latest", NEWEST)
        answer = await replicas[1].get(LATEST, Cache_Control="no-cache")
        assert answer.body == NEWEST.manifest

        async def hear() -> bool:
            return await served(replicas[0]) == NEWEST.manifest

        await soon(hear)


async def test_a_master_that_no_sentinel_knows_is_a_redis_that_is_away(watched: Watched) -> None:
    unknown = watched.url.replace(sentinel.NAME, "other")
    async with connected(unknown) as store:
        with pytest.raises(FleetUnavailable):
            await store.run("PING")
        assert store.is_unreachable
    async with connected(watched.url) as store:
        assert await store.run("PING")
