import asyncio

from proxy.runtime.ttl_cache import TTLCache


async def test_a_fact_expires() -> None:
    facts: TTLCache[str] = TTLCache()
    await facts.learn("a", "1", 0.02)
    assert await facts.get("a") == "1"
    await asyncio.sleep(0.05)
    assert await facts.get("a") is None


async def test_a_fact_without_life_is_not_learnt() -> None:
    facts: TTLCache[str] = TTLCache()
    await facts.learn("a", "1", 0)
    assert await facts.get("a") is None


async def test_a_fact_can_be_forgotten() -> None:
    facts: TTLCache[str] = TTLCache()
    await facts.learn("a", "1", 60)
    await facts.forget("a")
    await facts.forget("never known")
    assert await facts.get("a") is None


async def test_the_oldest_makes_room() -> None:
    facts: TTLCache[int] = TTLCache(limit=3)
    for number in range(10):
        await facts.learn(str(number), number, 60)
    assert [await facts.get(str(number)) for number in (6, 7, 8, 9)] == [None, 7, 8, 9]


async def test_two_rooms_do_not_share_facts() -> None:
    one: TTLCache[str] = TTLCache()
    other: TTLCache[str] = TTLCache()
    await one.learn("a", "1", 60)
    assert await other.get("a") is None
