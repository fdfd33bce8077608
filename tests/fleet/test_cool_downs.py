"""Replicas hold the same digest of a tag, whoever saw which: real Redis, three replicas."""

import time
from typing import Any

import pytest

from proxy.core.names import Digest, Repo, Tag, Target
from proxy.core.records import Descriptor, TagHistoryEntry, TagRecord
from proxy.fleet import store as stores
from proxy.fleet import tags as shared_tags
from tests.fakes import content
from tests.fakes.content import Image
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import Join, asked, holds
from tests.parts.redis import Redis
from tests.running import Proxy

OLD, MIDDLE, NEW = content.image(1), content.image(2), content.image(3)
LATEST = "/v2/app/manifests/latest"
PLACE = (Target("docker.io", Repo("library/app")), Tag("latest"))
KEY = "millpond:1:default:tag:{docker.io/library/app:latest}"
HOUR = 3600.0
DENY: dict[str, Any] = {"hub": {"min_age": "1h", "first_seen": "deny"}}
ALLOW: dict[str, Any] = {"hub": {"min_age": "1h", "first_seen": "allow"}}


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(shared_tags, "COMPARE_SECONDS", 0.2)
    upstream.add("library/app", OLD)
    for image in (MIDDLE, NEW):
        upstream.add("library/app", image, tags=[])


def record(image: Image, at: float) -> TagRecord:
    return TagRecord(Descriptor(image.media_type, Digest(image.digest), len(image.manifest)), at)


async def remembers(replica: Proxy, *seen: tuple[Image, float, float]) -> None:
    """Let a replica have seen a tag with these images, from and until so many hours ago."""
    now, tags = time.time(), replica.app.content.tags
    entries = [
        TagHistoryEntry(Digest(image.digest), now - first * HOUR, now - last * HOUR)
        for image, first, last in seen
    ]
    await tags.add_history(*PLACE, entries)
    await tags.restore(*PLACE, record(seen[-1][0], now - seen[-1][2] * HOUR))


async def served(replica: Proxy, **headers: str) -> tuple[str | None, str | None]:
    """Return the digest that a replica serves, None if it holds all, and until when."""
    answer = await replica.get(LATEST, **headers)
    status = answer.headers.get("Cache-Status", "")
    held = status.partition("held until ")[2][:16] or None
    if answer.status == 403:
        return None, held
    assert answer.status == 200, answer.body
    return answer.headers["Docker-Content-Digest"], held


async def all_serve(replicas: list[Proxy], image: Image) -> None:
    """Fail unless all serve an image, and hold a younger one until the same minute."""
    found = [await served(replica) for replica in replicas]
    assert [digest for digest, _ in found] == [image.digest] * len(replicas)
    assert len({held for _, held in found}) == 1, found
    assert found[0][1] is not None


async def test_new_replicas_hold_what_the_one_that_knows_the_tag_holds(
    join: Join, upstream: FakeUpstream
) -> None:
    first = await join(**DENY)
    await remembers(first, (OLD, 240, 1))
    assert await served(first) == (OLD.digest, None)
    upstream.retag("library/app", "latest", NEW)
    second = await join(**DENY)
    assert (await served(second, Cache_Control="no-cache"))[0] == OLD.digest
    await all_serve([first, second, await join(**DENY)], OLD)


async def test_a_new_replica_counts_from_the_first_sight_of_the_fleet(
    join: Join, upstream: FakeUpstream
) -> None:
    """The tag moved two hours ago, so the new image is old enough on all."""
    first = await join(**DENY)
    await remembers(first, (OLD, 240, 2), (NEW, 2, 0.5))
    upstream.retag("library/app", "latest", NEW)
    for replica in (first, await join(**DENY), await join(**DENY)):
        assert await served(replica) == (NEW.digest, None)


async def test_a_replica_that_was_down_while_the_tag_moved_twice(
    join: Join, upstream: FakeUpstream
) -> None:
    first, second = await join(**DENY), await join(**DENY)
    await remembers(first, (OLD, 240, 5), (MIDDLE, 5, 0.5))
    upstream.retag("library/app", "latest", MIDDLE)
    assert await served(first) == (MIDDLE.digest, None)
    upstream.retag("library/app", "latest", NEW)
    assert (await served(first, Cache_Control="no-cache"))[0] == MIDDLE.digest
    third = await join(**DENY)
    await remembers(third, (OLD, 240, 6))
    await all_serve([first, second, third], MIDDLE)


@pytest.mark.parametrize("rule", [DENY, ALLOW], ids=["deny", "allow"])
async def test_what_redis_has_lost_comes_from_the_replica_that_remembers(
    join: Join, upstream: FakeUpstream, redis: Redis, rule: dict[str, Any]
) -> None:
    """Another replica asks the registry first, and serves what its rule says until it learns."""
    first, second = await join(**rule), await join(**rule)
    await remembers(first, (OLD, 240, 200))
    upstream.retag("library/app", "latest", NEW)
    await served(second)

    async def agree() -> bool:
        found = [await served(replica) for replica in (first, second)]
        return [digest for digest, _ in found] == [OLD.digest] * 2

    await holds(agree)
    await asked(redis, "FLUSHALL")

    async def is_known() -> bool:
        return bool(await asked(redis, "HGET", KEY, "history"))

    await holds(is_known)
    await all_serve([first, second, await join(**rule)], OLD)


async def test_without_redis_each_goes_on_with_what_it_knows(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    first, second, third = [await join(**DENY) for _ in range(3)]
    await remembers(first, (OLD, 240, 1))
    for replica in (first, second):
        assert (await served(replica))[0] == OLD.digest
    redis.kill()
    upstream.retag("library/app", "latest", NEW)
    for replica in (first, second):
        assert (await served(replica, Cache_Control="no-cache"))[0] == OLD.digest
    assert (await served(third))[0] is None, "it knows nothing, and first sights are denied"
    redis.start()

    async def agree() -> bool:
        return (await served(third))[0] == OLD.digest

    await holds(agree)


INDEX = content.multi_platform("index")


@pytest.mark.parametrize("is_cold", [True, False])
async def test_a_digest_that_another_replica_serves_by_tag_is_served(
    join: Join, upstream: FakeUpstream, redis: Redis, *, is_cold: bool
) -> None:
    """Behind a load balancer, requests for a tag and for its digests come to different replicas."""
    upstream.add("library/app", INDEX, tags=["latest"])
    names = f"millpond:1:default:names:docker.io:library/app:{INDEX.children[-1].digest}"

    async def is_named() -> bool:
        return bool(await asked(redis, "EXISTS", names))

    first = await join(**DENY)
    if not is_cold:  # the index is held, and Redis has been emptied since
        assert (await first.get(f"/v2/app/manifests/{INDEX.digest}")).status == 403
        await holds(is_named)
        await asked(redis, "DEL", names)
    await remembers(first, (INDEX, 240, 1))
    assert await served(first) == (INDEX.digest, None)
    await holds(is_named)
    for image in (INDEX, *INDEX.children):
        other = await join(**DENY)
        assert (await other.get(f"/v2/app/manifests/{image.digest}")).status == 200
    assert (await other.get(f"/v2/app/manifests/{NEW.digest}")).status == 403
    upstream.retag("library/app", "latest", NEW)
    assert (await served(first, Cache_Control="no-cache"))[0] == INDEX.digest
    for replica in (first, other, await join(**DENY)):
        assert (await replica.get(f"/v2/app/manifests/{NEW.digest}")).status == 403


async def test_malformed_names_in_redis_name_nothing(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    replica = await join(**DENY)
    key = f"millpond:1:default:names:docker.io:library/app:{OLD.digest}"
    for name in (b"\xff", "sha256:short", "a b", "", "unknown", f"sha256:{'0' * 64}", OLD.digest):
        await asked(redis, "LPUSH", key, name)
    assert (await replica.get(f"/v2/app/manifests/{OLD.digest}")).status == 403
    await asked(redis, "DEL", key)
    await asked(redis, "SET", key, "no list")
    assert (await replica.get(f"/v2/app/manifests/{OLD.digest}")).status == 403
