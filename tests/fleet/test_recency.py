"""The last uses of objects, by all replicas; and one evictor at a time."""

import pytest

from proxy.core.errors import UpstreamUnavailable
from proxy.core.names import sha256
from proxy.fleet import recency
from proxy.fleet.recency import SharedRecency
from proxy.fleet.store import Store
from tests.parts.redis import Redis

A, B, C = (sha256(name) for name in (b"a", b"b", b"c"))


async def test_replicas_know_each_others_uses(store: Store) -> None:
    one, other = SharedRecency(store), SharedRecency(store)
    one.touch_all([A, B])
    await one.flush()
    uses = await other.last_used([A, B, C])
    assert set(uses) == {A, B}
    assert all(abs(used - store.now()) < 30 for used in uses.values())


async def test_a_use_never_goes_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = SharedRecency(store)
    one.touch(A)
    await one.flush()
    before = await one.last_used([A])
    monkeypatch.setattr(store, "now", lambda: 1.0)
    one.touch(A)
    await one.flush()
    assert await one.last_used([A]) == before


async def test_uses_that_wait_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recency, "MAX_WAITING", 2)
    one = SharedRecency(store)
    one.touch_all([A, B, A, C])
    await one.flush()
    assert set(await one.last_used([A, B, C])) == {A, C}


async def test_one_evicts_at_a_time(store: Store) -> None:
    one, other = SharedRecency(store), SharedRecency(store)
    async with one.lease() as is_ours:
        assert is_ours
        async with other.lease() as is_theirs:
            assert not is_theirs
        async with other.lease() as is_theirs:
            assert not is_theirs, "the end of one that was not had releases nothing"
    async with other.lease() as is_theirs:
        assert is_theirs


async def test_without_redis_nothing_is_evicted(store: Store, redis: Redis) -> None:
    one = SharedRecency(store)
    redis.kill()
    async with one.lease() as is_ours:
        assert not is_ours
    with pytest.raises(UpstreamUnavailable, match="Redis is away"):
        await one.last_used([A])
