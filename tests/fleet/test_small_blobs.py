"""Small blobs that travel through Redis, past a bucket that does not keep them."""

from collections import Counter

from proxy.core.names import Digest
from proxy.fleet import small_content
from proxy.fleet.leases import LeaseHolder
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import asked, holds
from tests.fleet.together import StartReplica, acquainted, fleet
from tests.parts.redis import Redis
from tests.parts.seaweed import TestBucket
from tests.running import Proxy, until

IMAGE = content.image("small", layers=(3000, 9000))
SMALL, LARGE = (Digest(digest) for digest in IMAGE.layers)
MANIFEST = f"/v2/library/app/manifests/{IMAGE.digest}"
OF_THE_REPLICA = {"hset", "expire", "hgetall", "mget"}
COMMANDS = 4
"""Redis commands that a cold miss may cost."""


def blob(digest: Digest, repo: str = "library/app") -> str:
    return f"/v2/{repo}/blobs/{digest}"


def sent(proxy: Proxy) -> Counter[str]:
    """Return the commands that a replica has sent to Redis because of requests."""
    counted = fleet(proxy).store._counters.redis_commands
    return Counter({name: count for name, count in counted.items() if name not in OF_THE_REPLICA})


async def pulled(proxy: Proxy) -> None:
    assert (await proxy.get(MANIFEST)).body == IMAGE.manifest
    for digest, data in IMAGE.blobs.items():
        assert (await proxy.get(blob(Digest(digest)))).body == data
    await proxy.settled()


async def sent_to(redis: Redis, count: int) -> None:
    """Return once Redis has so many blobs."""

    async def has_all() -> bool:
        return len(await asked(redis, "KEYS", "*:blob:*")) == count

    await holds(has_all)


async def test_small_content_outlives_the_replica_that_has_fetched_it(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis, bucket: TestBucket
) -> None:
    storage = {"bucket": bucket.settings(min_object=4096)}
    upstream.add("library/app", IMAGE)
    first = await replica(storage=storage)
    await pulled(first)
    small = [digest for digest, data in IMAGE.blobs.items() if len(data) < 4096]
    await sent_to(redis, len(small))
    await until(lambda: {*bucket.objects()} == {LARGE})
    await first.close()
    upstream.clear()
    second = await replica(storage=storage)
    await pulled(second)
    assert not upstream.requests
    answer = await (await replica(storage=storage)).get(blob(SMALL))
    assert answer.headers["Cache-Status"] == "Millpond; fwd=uri-miss; stored; detail=peer"


async def test_what_redis_keeps_is_bounded(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await replica()
    await pulled(proxy)
    await sent_to(redis, sum(len(data) < 4096 for data in IMAGE.blobs.values()))
    keys = await asked(redis, "KEYS", "*:blob:*")
    assert not any(LARGE in key.decode() for key in keys)
    for key in keys:
        assert 0 < await asked(redis, "TTL", key) <= small_content.LIFE_SECONDS
        assert await asked(redis, "STRLEN", key) <= 4096


async def test_another_repository_gets_small_content_only_if_the_registry_confirms_it(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis
) -> None:
    secret = {"username": "someone", "password": "secret"}
    upstream.add("library/app", IMAGE)
    first = await replica(hub=secret)
    await pulled(first)
    await sent_to(redis, sum(len(data) < 4096 for data in IMAGE.blobs.values()))
    await first.close()
    upstream.add("org/none", content.image("none"))
    second = await replica(hub=secret)
    assert (await second.get(blob(SMALL, "org/none"))).status == 404
    assert (await second.get(blob(SMALL))).status == 200


async def test_small_blobs_that_each_client_asks_for_itself_are_not_sent(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await replica(hub={"credentials": "caller"})
    await pulled(proxy)
    assert sent(proxy)["get"] <= 1, "that of the manifest"
    await proxy.close()
    assert await asked(redis, "KEYS", "*:blob:*") == []


async def test_wrong_bytes_in_redis_are_not_used(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await replica()
    key = fleet(proxy).store.key("blob", "docker.io", "library/app", SMALL)
    for wrong in (b"1" + b"x" * 3000, b"", b"1" * 100_000):
        await asked(redis, "SET", key, wrong)
        assert (await proxy.get(blob(SMALL))).body == IMAGE.blobs[SMALL]
        await proxy.settled()
        await proxy.app.content.faults.drop(SMALL, reason="test")
    assert upstream.bodies(SMALL) == 3


async def test_a_cold_miss_costs_at_most_four_commands(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    proxy, other = await replica(), await replica()
    await acquainted(proxy, other)
    await until(lambda: not fleet(proxy).store.is_unreachable)
    for path, stored in ((MANIFEST, "set"), (blob(SMALL), "set"), (blob(LARGE), "release")):
        before = sent(proxy)
        assert (await proxy.get(path)).status == 200
        await proxy.settled()
        await until(lambda: sent(proxy)[stored] > before[stored])  # noqa: B023 - at once
        await until(lambda: sent(proxy)["release"] > before["release"])  # noqa: B023
        spent = sent(proxy) - before
        assert sum(spent.values()) <= COMMANDS, spent
    assert spent == {"lease": 1, "release": 1}, "a blob that is known to be large"
    before = sent(other)
    assert (await other.get(blob(SMALL))).status == 200
    await other.settled()
    await until(lambda: sent(other)["release"] > before["release"])
    assert sum((sent(other) - before).values()) <= 2, "read in Redis, and noted as a holder"
    before = sent(proxy)
    for path in (MANIFEST, blob(SMALL), blob(LARGE)):
        assert (await proxy.get(path)).status == 200
    assert sent(proxy) == before, "hits cost none"


async def test_a_replica_that_reads_redis_needs_no_lease(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await replica()
    await asked(
        redis,
        "SET",
        fleet(proxy).store.key("blob", "docker.io", "library/app", SMALL),
        b"1" + IMAGE.blobs[SMALL],
    )
    exchange = fleet(proxy).exchange
    assert exchange is not None
    assert (await proxy.get(blob(SMALL))).status == 200
    assert not isinstance(await exchange.leases.acquire("docker.io", SMALL), LeaseHolder)
    assert upstream.bodies(SMALL) == 0


async def test_without_a_secret_small_content_goes_to_the_bucket(
    replica: StartReplica, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    upstream.add("library/app", IMAGE)
    storage = {"bucket": bucket.settings(min_object=4096)}
    proxy = await replica(storage=storage, fleet={"secret_file": None})
    await pulled(proxy)
    await until(lambda: {*bucket.objects()} == {IMAGE.digest, *IMAGE.blobs})
