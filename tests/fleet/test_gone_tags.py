"""Tags that are gone: what one replica drops or sees deleted, no replica serves any longer."""

import asyncio
import json
import time

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.core.errors import DigestInvalid
from proxy.core.names import Repo, Tag, Target, parse_digest
from proxy.fleet import store as stores
from proxy.fleet import tag_store
from proxy.fleet.tag_facts import DROPPED, GONE, Fact, read_fact
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import CHANNEL, Join, asked, holds, soon
from tests.parts.redis import Redis
from tests.running import Proxy
from tests.web.admin.test_actions import Operator

OLD, NEW = content.image(1), content.image(2)
LATEST = "/v2/app/manifests/latest"
WITHIN = 1.0
"""Seconds in which all replicas agree."""
APP = Target("docker.io", Repo("library/app"))


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OLD)


async def has(replica: Proxy) -> bool:
    """Return True if a replica has a record of the tag."""
    return await replica.app.content.tags.get(APP, Tag("latest")) is not None


async def forgotten(replicas: list[Proxy], within: float = WITHIN) -> None:
    async def is_gone() -> bool:
        return not any([await has(replica) for replica in replicas])

    await soon(is_gone, within)


async def drop(replica: Proxy) -> None:
    connector = UnixConnector(str(replica.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        [image, _] = await Operator(session).lines("DELETE", "images", match="app:latest")
    assert image["dropped"]


async def three(join: Join, **changes: object) -> list[Proxy]:
    replicas = [await join(**changes) for _ in range(3)]
    for replica in replicas:
        assert (await replica.get(LATEST)).body == OLD.manifest
    return replicas


async def gone(replica: Proxy) -> None:
    """Have a replica ask the registry now, which has no such tag."""
    assert (await replica.get(LATEST, Cache_Control="no-cache")).status == 404


async def test_a_tag_that_one_replica_sees_deleted_goes_from_all(
    join: Join, upstream: FakeUpstream
) -> None:
    replicas = await three(join)
    upstream.remove_tag("library/app", "latest")
    await gone(replicas[0])
    asked_before = len(upstream.requests)
    await forgotten(replicas)
    assert len(upstream.requests) == asked_before, "nobody else has asked"
    for replica in replicas:
        assert (await replica.get(LATEST)).status == 404
    upstream.retag("library/app", "latest", NEW)
    answer = await replicas[1].get(LATEST, Cache_Control="no-cache")
    assert answer.body == NEW.manifest
    for replica in replicas:
        assert (await replica.get(LATEST)).body == NEW.manifest, "also without a new check"


async def test_a_replica_that_does_not_know_a_deleted_tag_says_so_too(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    replicas = await three(join)
    await asked(redis, "FLUSHALL")
    upstream.remove_tag("library/app", "latest")
    assert (await (await join()).get(LATEST)).status == 404
    await forgotten(replicas)


async def test_a_replica_that_keeps_deleted_tags_keeps_it(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    follows = await join()
    keeps = await join(freshness={"deleted_tags": "keep"})
    late = await join()
    for replica in (follows, keeps, late):
        assert (await replica.get(LATEST)).body == OLD.manifest
    upstream.remove_tag("library/app", "latest")
    await gone(follows)
    await forgotten([follows, late])
    assert (await keeps.get(LATEST)).body == OLD.manifest


async def test_a_tag_that_one_replica_drops_is_forgotten_by_all(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    replicas = await three(join)
    await drop(replicas[0])
    await forgotten(replicas)
    for replica in replicas:
        assert await replica.history("docker.io", "library/app", "latest") == ()
    upstream.retag("library/app", "latest", NEW)
    answers = [await replica.get(LATEST) for replica in replicas]
    assert {answer.body for answer in answers} == {NEW.manifest}
    late = await join()
    assert (await late.get(LATEST)).body == NEW.manifest
    history = await late.history("docker.io", "library/app", "latest")
    assert [entry.digest for entry in history] == [NEW.digest], "Redis has no history either"


async def test_a_dropped_tag_that_is_pinned_elsewhere_stays_there(
    join: Join, upstream: FakeUpstream
) -> None:
    first, pinning = await join(), await join(pins=["app:latest"])
    last = await join()
    for replica in (first, pinning, last):
        assert (await replica.get(LATEST)).body == OLD.manifest
    await drop(first)
    await forgotten([first, last])
    assert await has(pinning)


async def test_an_older_fact_does_not_bring_a_dropped_tag_back(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    began = time.time()
    replicas = await three(join)
    await drop(replicas[0])
    await forgotten(replicas)
    kind = "application/vnd.oci.image.manifest.v1+json"
    fact = {"digest": OLD.digest, "type": kind, "size": len(OLD.manifest), "at": began}
    names = {"upstream": "docker.io", "repo": "library/app", "tag": "latest"}
    await asked(redis, "PUBLISH", CHANNEL, json.dumps(names | fact))
    upstream.retag("library/app", "latest", NEW)
    assert (await replicas[1].get(LATEST)).body == NEW.manifest


async def test_a_slow_check_does_not_bring_a_dropped_tag_back(
    join: Join, upstream: FakeUpstream
) -> None:
    replicas = await three(join)
    gate = upstream.hold(method="HEAD", reference="latest", times=1)
    slow = asyncio.create_task(replicas[1].get(LATEST, Cache_Control="no-cache"))
    await upstream.until(lambda: upstream.count("HEAD", "manifest", "latest") == 1)
    await drop(replicas[0])
    await forgotten(replicas)
    gate.set()
    assert (await slow).body == OLD.manifest
    assert not any([await has(replica) for replica in replicas])


async def test_a_tag_that_was_dropped_without_redis_is_forgotten_afterwards(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    replicas = await three(join)
    redis.kill()
    await drop(replicas[0])
    assert await has(replicas[1]), "it has heard nothing, and serves the tag until its tag_ttl"
    redis.start()
    await forgotten(replicas, within=20)


async def test_a_replica_that_missed_the_message_compares(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    replicas = await three(join)
    records = [await one.app.content.tags.get(APP, Tag("latest")) for one in replicas]
    await drop(replicas[0])
    await forgotten(replicas)
    await replicas[1].app.content.tags.restore(APP, Tag("latest"), records[1])
    await asked(redis, "CLIENT", "KILL", "TYPE", "pubsub")
    await forgotten(replicas, within=20)


async def test_tags_that_nobody_has_fill_no_redis(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    replica = await join()
    for method in ("GET", "HEAD"):
        assert (await replica.ask(method, f"/v2/app/manifests/no-{method}")).status == 404

    async def are_there() -> bool:
        return len(await asked(redis, "KEYS", "*:tag:*")) == 2

    await holds(are_there)
    for key in await asked(redis, "KEYS", "*:tag:*"):
        assert 0 < await asked(redis, "TTL", key) <= tag_store.UNKNOWN_SECONDS


@pytest.mark.parametrize("descriptor", [GONE, DROPPED])
def test_what_is_gone_has_no_digest_so_that_an_older_version_ignores_it(
    descriptor: object,
) -> None:
    sent = Fact(APP, Tag("latest"), descriptor, 5.0)  # type: ignore[arg-type]
    message = json.loads(sent.encoded())
    assert read_fact(message) == sent
    assert read_fact(message | {"type": "of a later version"}) == sent._replace(descriptor=GONE)
    with pytest.raises(DigestInvalid):
        parse_digest(message["digest"])


async def test_a_message_of_another_version_changes_nothing(join: Join, redis: Redis) -> None:
    replicas = await three(join)
    names = {"upstream": "docker.io", "repo": "library/app", "tag": "latest"}
    for unknown in ({}, {"undone": True, "at": time.time()}, {"digest": None, "at": time.time()}):
        await asked(redis, "PUBLISH", CHANNEL, json.dumps(names | unknown))
    await drop(replicas[0])  # comes after these
    await forgotten(replicas)
