"""Content that replicas send each other, through the proxies of one process."""

import asyncio
import os

import pytest

from proxy.core.names import Digest
from proxy.fleet import leases, manifests, sources
from proxy.runtime.events import EventKind
from tests.fakes import content, faults
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import holds
from tests.fleet.together import StartReplica, acquainted, fleet
from tests.parts.redis import Redis
from tests.parts.seaweed import TestBucket
from tests.running import Proxy, until

SIZE = 2_000_000
IMAGE = content.image("fleet", layers=(SIZE,))
LAYER = Digest(IMAGE.layers[0])
BLOB = f"/v2/library/app/blobs/{LAYER}"


@pytest.fixture(autouse=True)
def _image(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    upstream.add("org/other", IMAGE)


async def warm(proxy: Proxy, path: str = BLOB) -> None:
    """Let a replica hold a blob."""
    assert (await proxy.get(path)).status == 200
    await proxy.settled()


async def test_a_replica_takes_from_another_what_that_one_holds(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    await warm(a)
    answer = await b.get(BLOB)
    assert answer.body == IMAGE.blobs[LAYER]
    assert answer.headers["Cache-Status"] == "Millpond; fwd=uri-miss; stored; detail=peer"
    assert upstream.bodies(LAYER) == 1
    await b.settled()
    assert LAYER in b.held()
    assert (await b.get(BLOB)).headers["Cache-Status"] == "Millpond; hit"
    assert b.numbers["sources"]["peer"] == {"requests": 1, "bytes": SIZE}
    assert b.numbers["sources"]["disk"] == {"requests": 1, "bytes": SIZE}
    assert a.numbers["sources"]["registry"] == {"requests": 1, "bytes": SIZE}


async def test_a_replica_finds_holders_without_the_help_of_redis(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    await warm(a)
    await fleet(a).store.run("FLUSHALL")
    await acquainted(a, b)
    await warm(b)
    assert upstream.bodies(LAYER) == 1


async def test_a_holder_that_lost_it_is_forgotten(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    await warm(a)
    await a.app.content.faults.drop(LAYER, reason="test")
    await warm(b)
    assert upstream.bodies(LAYER) == 2

    async def is_forgotten() -> bool:
        holders = await fleet(a).store.run("SMEMBERS", fleet(a).store.key("holders", LAYER))
        return {one.decode() for one in holders} == {fleet(b).address}

    await holds(is_forgotten)


async def test_a_replica_follows_a_download_in_progress(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    release = upstream.stall(SIZE // 2, kind="blob")
    gets = [asyncio.create_task(one.get(BLOB)) for one in (a, b)]
    await until(lambda: all(one.stats["downloads"] for one in (a, b)))
    await until(lambda: all(one.stats["downloads"][0]["bytes"] > 100_000 for one in (a, b)))
    release.set()
    for get in gets:
        assert (await get).body == IMAGE.blobs[LAYER]
    assert upstream.bodies(LAYER) == 1


async def test_a_registry_that_is_slow_to_answer_is_asked_once(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    gate = upstream.hold(kind="blob")
    gets = [asyncio.create_task(one.get(BLOB)) for one in (a, b)]
    await until(lambda: fleet(a).store._counters.redis_commands["lease"] > 0)
    await asyncio.sleep(3.5)  # beyond the life of a lease, and of a request to a replica
    gate.set()
    for get in gets:
        assert (await get).body == IMAGE.blobs[LAYER]
    assert upstream.bodies(LAYER) == 1


async def test_wrong_bytes_of_a_replica_reach_no_client(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    await warm(a)
    path = a.storage / "blobs" / LAYER.replace(":", "/")
    damaged = bytearray(path.read_bytes())
    damaged[5] ^= 1
    path.write_bytes(damaged)
    try:
        answer = await b.get(BLOB)
        assert answer.status != 200
    except Exception:
        pass
    assert LAYER not in b.held()
    corrupt = b.app.events.recent([EventKind.CORRUPT])
    assert {(event.subject, event.data["where"]) for event in corrupt} == {(LAYER, "peer")}


async def test_private_content_is_confirmed_for_each_repository(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    await warm(a)
    upstream.clear()
    answer = await b.get(f"/v2/org/other/blobs/{LAYER}")
    assert answer.body == IMAGE.blobs[LAYER]
    assert upstream.count("HEAD", "blob", LAYER) == 1, "the registry confirmed it"
    assert upstream.bodies(LAYER) == 0
    upstream.add("org/without", content.image("without"))
    answer = await b.get(f"/v2/org/without/blobs/{LAYER}")
    assert answer.status == 404


async def test_a_cold_miss_costs_few_commands_of_redis(replica: StartReplica) -> None:
    a = await replica()
    await until(lambda: not fleet(a).store.is_unreachable)
    counted = fleet(a).store._counters.redis_commands
    before = counted.copy()
    await warm(a)
    await until(lambda: counted["release"] > before["release"])
    beats = {"hset", "expire", "hgetall"}
    spent = {name: n - before[name] for name, n in counted.items() if name not in beats}
    assert sum(spent.values()) <= 4, spent
    before = counted.copy()
    await warm(a)
    spent = {name: n - before[name] for name, n in counted.items() if name not in beats}
    assert sum(spent.values()) == 0, "a hit asks Redis nothing"


async def test_without_redis_every_replica_fetches_for_itself(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis
) -> None:
    a, b = await replica(), await replica()
    redis.kill()
    for one in (a, b):
        assert (await one.get(BLOB)).body == IMAGE.blobs[LAYER]
    assert upstream.bodies(LAYER) <= 2


async def test_a_redis_that_hangs_delays_one_request_a_little(
    replica: StartReplica, upstream: FakeUpstream, redis: Redis, real_limits: None
) -> None:
    a = await replica()
    redis.pause()
    try:
        async with asyncio.timeout(20):
            assert (await a.get(BLOB)).body == IMAGE.blobs[LAYER]
    finally:
        redis.resume()


async def test_without_a_secret_replicas_exchange_nothing(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(fleet={"secret_file": None}), await replica(fleet={"secret_file": None})
    for one in (a, b):
        await warm(one)
    assert upstream.bodies(LAYER) == 2
    assert "replicas exchange no content" in b.log.getvalue()


async def test_a_download_that_fails_frees_its_lease(
    replica: StartReplica, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 60.0)
    monkeypatch.setattr(sources, "GIVE_UP_SECONDS", 60.0)
    a, b = await replica(), await replica()
    upstream.fail(503, kind="blob", times=1)
    assert (await a.get(BLOB)).status == 502
    async with asyncio.timeout(30):
        assert (await b.get(BLOB)).body == IMAGE.blobs[LAYER]


async def test_a_replica_that_stops_hands_its_download_over(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    upstream.fault(faults.stall(SIZE // 2, asyncio.Event()), kind="blob", times=1)
    first = asyncio.create_task(a.get(BLOB))
    await until(lambda: bool(a.stats["downloads"]))
    second = asyncio.create_task(b.get(BLOB))
    await until(lambda: bool(b.stats["downloads"]) and b.stats["downloads"][0]["bytes"] > 0)
    await a.close()
    assert (await second).body == IMAGE.blobs[LAYER]
    first.cancel()


async def test_a_registry_that_breaks_off_for_one_replica_is_asked_by_another(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    await acquainted(a, b)
    gate = asyncio.Event()
    upstream.fault(faults.stall(SIZE // 2, gate), faults.truncate(SIZE // 2), kind="blob", times=1)
    first = asyncio.create_task(a.get(BLOB))
    await until(lambda: bool(a.stats["downloads"]) and a.stats["downloads"][0]["bytes"] > 0)
    second = asyncio.create_task(b.get(BLOB))
    await until(lambda: bool(b.stats["downloads"]) and b.stats["downloads"][0]["bytes"] > 0)
    gate.set()
    for get in (first, second):
        assert (await get).body == IMAGE.blobs[LAYER]
    assert upstream.bodies(LAYER) == 2


async def test_a_registry_that_fails_is_no_absence(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    await acquainted(a, b)
    upstream.fail(503)
    assert (await a.get(BLOB)).status == 502
    assert (await a.head(BLOB)).status == 502


async def test_a_replica_without_room_lets_another_one_fetch(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    full, other = await replica(storage={"max_size": SIZE // 2}), await replica()
    await acquainted(full, other)
    await full.get(MANIFEST)  # which says how large the blob is
    release = upstream.stall(SIZE // 2, kind="blob")
    gets = [asyncio.create_task(full.get(BLOB)) for _ in range(3)]
    await until(lambda: bool(other.stats["downloads"]))
    release.set()
    for get in gets:
        assert (await get).body == IMAGE.blobs[LAYER]
    assert upstream.bodies(LAYER) == 1
    await other.settled()
    assert LAYER in other.held()
    assert LAYER not in full.held()


async def test_without_room_anywhere_each_replica_passes_through(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    full = [await replica(storage={"max_size": SIZE // 2}) for _ in range(2)]
    await acquainted(*full)
    for one in full:
        await one.get(MANIFEST)
    for one in full:
        assert (await one.get(BLOB)).body == IMAGE.blobs[LAYER]
    assert upstream.bodies(LAYER) == 2


async def test_what_an_unreachable_replica_has_stored_comes_from_the_bucket(
    replica: StartReplica, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    storage = {"bucket": bucket.settings()}
    nowhere = {"advertise": "http://127.0.0.1:9"}
    first, second = await replica(storage=storage, fleet=nowhere), await replica(storage=storage)
    release = upstream.stall(SIZE // 2, kind="blob")
    gets = [asyncio.create_task(first.get(BLOB))]
    await until(lambda: bool(first.stats["downloads"]))
    gets.append(asyncio.create_task(second.get(BLOB)))
    await until(lambda: fleet(second).store._counters.peer_failures > 0)
    release.set()
    for get in gets:
        assert (await get).body == IMAGE.blobs[LAYER]
    assert upstream.bodies(LAYER) == 1
    assert second.numbers["sources"]["bucket"]["requests"] == 1


MANIFEST = f"/v2/library/app/manifests/{IMAGE.digest}"


async def test_a_manifest_is_fetched_once(replica: StartReplica, upstream: FakeUpstream) -> None:
    a, b = await replica(), await replica()
    gate = upstream.hold(kind="manifest")
    gets = [asyncio.create_task(one.get(MANIFEST)) for one in (a, b, a, b)]
    await until(lambda: upstream.count("GET", "manifest") == 1)
    await asyncio.sleep(3)  # beyond the life of a lease
    gate.set()
    for get in gets:
        assert (await get).body == IMAGE.manifest
    assert upstream.count("GET", "manifest") == 1


async def test_a_held_manifest_is_taken_from_a_replica(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    first = await a.get(MANIFEST)
    upstream.fail(503)
    second = await b.get(MANIFEST)
    assert second.body == IMAGE.manifest
    assert second.headers["Content-Type"] == first.headers["Content-Type"]


async def test_a_manifest_of_another_repository_is_not_given(
    replica: StartReplica, upstream: FakeUpstream
) -> None:
    a, b = await replica(), await replica()
    await a.get(MANIFEST)
    upstream.add("org/without", content.image("without"))
    assert (await b.get(f"/v2/org/without/manifests/{IMAGE.digest}")).status == 404
    assert (await b.get(f"/v2/org/other/manifests/{IMAGE.digest}")).body == IMAGE.manifest


async def test_a_missing_manifest_is_missing_at_once_for_all(
    replica: StartReplica, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 60.0)
    monkeypatch.setattr(manifests, "FETCH_SECONDS", 60.0)
    a, b = await replica(), await replica()
    missing = f"/v2/library/app/manifests/{LAYER}"
    async with asyncio.timeout(30):
        for get in [asyncio.create_task(one.get(missing)) for one in (a, b)]:
            assert (await get).status == 404


async def test_a_replica_that_cannot_read_its_disk_is_followed_no_longer(
    replica: StartReplica, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "GIVE_UP_SECONDS", 0.5)
    a, b = await replica(), await replica()
    upstream.stall(SIZE // 2, kind="blob", times=1)
    first = asyncio.create_task(a.get(BLOB))
    await until(lambda: bool(a.stats["downloads"]) and a.stats["downloads"][0]["bytes"] > 100_000)
    broken, inode = [0], a.spooled()[0].stat().st_ino
    sendfile = os.sendfile

    def failing(socket: int, fd: int, start: int, count: int) -> int:
        if os.fstat(fd).st_ino == inode:
            broken[0] += 1
            raise OSError(5, "Input/output error")
        return sendfile(socket, fd, start, count)

    monkeypatch.setattr(os, "sendfile", failing)
    assert (await b.get(BLOB)).body == IMAGE.blobs[LAYER], "from the registry"
    assert 1 <= broken[0] <= 20, "it is not asked all the time"
    first.cancel()
