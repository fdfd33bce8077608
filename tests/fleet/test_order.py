"""Which source a replica takes content from, what that costs, and what happens without each."""

import asyncio
from collections import Counter

import pytest

from proxy.core.names import Digest
from proxy.fleet import leases, peers
from proxy.storage.bucket import client
from proxy.web.in_flight import Transfer
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import asked
from tests.fleet.together import StartReplica, acquainted, fleet
from tests.parts.process import free_port
from tests.parts.redis import Redis
from tests.parts.seaweed import TestBucket
from tests.running import Proxy, until

SIZE = 6_000_000
IMAGE = content.image("order", layers=(SIZE,))
LAYER = Digest(IMAGE.layers[0])
DATA = IMAGE.blobs[LAYER]
BLOB = f"/v2/library/app/blobs/{LAYER}"
BUCKET_HEADS, BUCKET_PUTS, REDIS_COMMANDS = 1, 1, 4
"""What a cold miss may cost the whole fleet."""


@pytest.fixture(autouse=True)
def _image(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)


async def source(proxy: Proxy) -> str:
    """Pull the blob; return where it came from, as `Cache-Status` says."""
    answer = await proxy.get(BLOB)
    assert (answer.status, answer.body) == (200, DATA)
    await proxy.settled()
    if "hit" in (status := answer.headers["Cache-Status"]):
        return "disk"
    return status.partition("detail=")[2] or "registry"


async def empty(proxy: Proxy) -> None:
    await proxy.app.content.faults.drop(LAYER, reason="test")


async def copied(bucket: TestBucket) -> None:
    await until(lambda: LAYER in bucket.objects())


def bucket_requests(*proxies: Proxy) -> Counter[str]:
    """Return how often replicas have asked the bucket, together."""
    counted: Counter[str] = Counter()
    for proxy in proxies:
        counted.update(proxy.app.admin._metrics.cache.bucket_requests)
    return +counted


async def test_sources_in_order(
    replica: StartReplica, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    storage = {"bucket": bucket.settings()}
    one, other = await replica(storage=storage), await replica(storage=storage)
    await acquainted(one, other)
    release = upstream.stall(SIZE // 2, kind="blob")
    get = asyncio.create_task(one.get(BLOB))
    await until(lambda: bool(one.stats["downloads"]) and one.stats["downloads"][0]["bytes"] > 0)
    await asyncio.to_thread(
        bucket.put, LAYER, DATA, {"v": 1, "public": True, "in": ["docker.io/library/app"]}
    )
    following = asyncio.create_task(source(other))
    await until(lambda: bool(other.stats["downloads"]) and other.stats["downloads"][0]["bytes"] > 0)
    release.set()
    assert await following == "peer", "one that fetches it, although the bucket has it"
    assert (await get).body == DATA
    assert await source(other) == "disk"
    await empty(other)
    assert await source(other) == "bucket", "although another replica holds it"
    bucket.delete(LAYER)
    await empty(other)
    assert await source(other) == "peer"
    await copied(bucket)  # again, by the replica that has missed it there
    bucket.delete(LAYER)
    for proxy in (one, other):
        await empty(proxy)
    upstream.heal()
    assert upstream.bodies(LAYER) == 1
    assert await source(other) == "registry"


async def test_what_a_cold_miss_costs_the_fleet(
    replica: StartReplica, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    storage = {"bucket": bucket.settings()}
    replicas = [await replica(storage=storage) for _ in range(3)]
    await acquainted(*replicas)
    await replicas[0].get(f"/v2/library/app/manifests/{IMAGE.digest}")
    await replicas[0].settled()
    before = bucket_requests(*replicas)
    counted = fleet(replicas[0]).store._counters.redis_commands
    commands = Counter(counted)
    release = upstream.stall(SIZE // 2, kind="blob")
    gets = [asyncio.create_task(one.get(BLOB)) for one in replicas]
    for one in replicas:
        await until(lambda: bool(one.stats["downloads"]))  # noqa: B023 - awaited at once
        await until(lambda: one.stats["downloads"][0]["bytes"] > 0)  # noqa: B023
    release.set()
    for get in gets:
        assert (await get).body == DATA
    await copied(bucket)
    for one in replicas:
        assert one.app.bucket is not None
        uploads = one.app.bucket.uploads
        await until(lambda: not uploads.pending)  # noqa: B023 - awaited at once
    spent = bucket_requests(*replicas) - before
    assert spent["get"] + spent["head"] <= BUCKET_HEADS, spent
    assert spent["put"] == BUCKET_PUTS, spent
    await until(lambda: counted["release"] > commands["release"])
    of_misses = {"lease", "release", "get", "set"}
    own = Counter({name: counted[name] - commands[name] for name in of_misses})
    assert sum(own.values()) <= REDIS_COMMANDS, own
    before = bucket_requests(*replicas)
    for one in replicas:
        assert await source(one) == "disk"
    assert bucket_requests(*replicas) == before, "a hit asks the bucket nothing"


async def test_without_redis_and_bucket_a_pull_works(
    replica: StartReplica, upstream: FakeUpstream, bucket: TestBucket, redis: Redis
) -> None:
    nowhere = bucket.settings(endpoint=f"http://127.0.0.1:{free_port()}")
    one, other = [await replica(storage={"bucket": nowhere}) for _ in range(2)]
    redis.kill()
    async with asyncio.timeout(20):
        for proxy in (one, other):
            assert await source(proxy) in {"registry", "peer"}
    assert upstream.bodies(LAYER) <= 2, "one for each"


async def test_what_redis_promises_and_nobody_has_is_fetched_again(
    replica: StartReplica, upstream: FakeUpstream, bucket: TestBucket, redis: Redis
) -> None:
    storage = {"bucket": bucket.settings()}
    first = await replica(storage=storage)
    assert await source(first) == "registry"
    await copied(bucket)
    await first.close()
    bucket.delete(LAYER)
    second = await replica(storage=storage)
    key = fleet(second).store.key("holders", LAYER)
    assert await asked(redis, "SMEMBERS", key) == {fleet(first).address.encode()}
    assert await source(second) == "registry"
    await copied(bucket)
    assert upstream.bodies(LAYER) == 2


async def test_a_replica_that_stalls_is_left_at_the_next_byte(
    replica: StartReplica, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "STALL_SECONDS", 0.5)
    one, other = await replica(), await replica()
    await acquainted(one, other)
    assert await source(one) == "registry"
    turn, turns = Transfer.acquire, 0

    async def stuck(self: Transfer, most: int) -> int:
        nonlocal turns
        turns += 1
        if turns > 3:
            await asyncio.sleep(3600)
        return await turn(self, most)

    monkeypatch.setattr(Transfer, "acquire", stuck)
    upstream.clear()
    assert await source(other) == "peer", "where the first byte came from"
    (rest,) = [one for one in upstream.requests if one.kind == "blob" and one.method == "GET"]
    start = int(rest.headers["Range"].removeprefix("bytes=").partition("-")[0])
    assert 0 < start < SIZE


async def test_a_lease_ends_within_seconds(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis
) -> None:
    one = await replica()
    release = upstream.stall(SIZE // 2, kind="blob")
    get = asyncio.create_task(one.get(BLOB))
    await until(lambda: bool(one.stats["downloads"]) and one.stats["downloads"][0]["bytes"] > 0)
    key = fleet(one).store.key("lease", "docker.io", LAYER)
    assert (await asked(redis, "GET", key)).decode().startswith(f"{fleet(one).address} ")
    assert 0 < await asked(redis, "PTTL", key) <= leases.LEASE_SECONDS * 1000 <= 5000
    release.set()
    assert (await get).body == DATA


def test_the_bucket_and_redis_have_little_time_to_answer(real_limits: None) -> None:
    """A slow one must not delay a pull more than the registry would."""
    from proxy.fleet import connecting  # noqa: PLC0415

    assert 0.2 <= connecting.CONNECT_SECONDS <= connecting.ANSWER_SECONDS <= 0.5
    assert client.ANSWER_SECONDS <= 2
