import asyncio

import pytest

from proxy.runtime.ttl_cache import TTLCache


async def test_a_value_expires() -> None:
    cache: TTLCache[str] = TTLCache()
    await cache.set("a", "1", 0.02)
    assert await cache.get("a") == "1"
    await asyncio.sleep(0.05)
    assert await cache.get("a") is None
    assert await cache.values() == []


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan")])
async def test_a_value_without_time_to_live_is_not_kept(ttl: float) -> None:
    cache: TTLCache[str] = TTLCache()
    await cache.set("a", "1", 60)
    await cache.set("a", "2", ttl)
    assert await cache.get("a") is None


async def test_a_value_may_live_forever() -> None:
    cache: TTLCache[str] = TTLCache()
    await cache.set("a", "1", float("inf"))
    await asyncio.sleep(0.01)
    assert await cache.get("a") == "1"


async def test_a_new_value_has_a_new_time_to_live() -> None:
    cache: TTLCache[str] = TTLCache()
    await cache.set("a", "1", 0.02)
    await cache.set("a", "2", 60)
    await asyncio.sleep(0.05)
    assert await cache.get("a") == "2"


async def test_a_value_can_be_deleted() -> None:
    cache: TTLCache[str] = TTLCache()
    await cache.set("a", "1", 60)
    await cache.delete("a")
    await cache.delete("unknown")
    assert await cache.get("a") is None


async def test_the_least_recently_used_value_makes_room() -> None:
    cache: TTLCache[int] = TTLCache(limit=3)
    for number in range(3):
        await cache.set(str(number), number, 60)
    assert await cache.get("0") == 0
    await cache.set("3", 3, 60)
    assert [await cache.get(str(number)) for number in range(4)] == [0, None, 2, 3]
    assert sorted(await cache.values()) == [0, 2, 3]


async def test_keys_take_no_more_room_than_values() -> None:
    """The bound is ours: aiocache has none, and forgets no key by itself."""
    cache: TTLCache[int] = TTLCache(limit=10)
    for number in range(1000):
        await cache.set(str(number), number, 60)
        await cache.get(f"unknown {number}")
    assert len(cache._keys) == len(cache._values._cache) == len(cache._values._handlers) == 10


async def test_two_caches_share_nothing() -> None:
    one: TTLCache[str] = TTLCache()
    other: TTLCache[str] = TTLCache()
    await one.set("a", "1", 60)
    assert await other.get("a") is None
