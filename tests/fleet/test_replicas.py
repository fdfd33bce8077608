import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.fleet import replicas as module
from proxy.fleet.replicas import Replicas
from proxy.fleet.store import Store
from proxy.runtime.supervisor import running_beside
from tests.running import until

A, B = "http://10.0.0.1:5000", "https://[fd00::2]:5000"


@pytest.fixture
def make(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Replicas]:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    return lambda address: Replicas(store, address, lambda: {"version": "1", "at": address})


async def test_replicas_find_each_other_and_say_how_they_are(
    make: Callable[[str], Replicas],
) -> None:
    a, b = make(A), make(B)
    async with running_beside(a.beat(), "a"), running_beside(b.beat(), "b"):
        await until(lambda: a.others() == [B] and b.others() == [A])
        assert {address: facts["at"] for address, facts in a.all().items()} == {A: A, B: B}


async def test_a_replica_that_leaves_is_gone(make: Callable[[str], Replicas]) -> None:
    a, b = make(A), make(B)
    await b._beat_once()
    await a._beat_once()
    assert a.others() == [B]
    await b.leave()
    await a._beat_once()
    assert a.others() == []


async def test_a_replica_that_says_nothing_is_gone(
    make: Callable[[str], Replicas], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make(A), make(B)
    await b._beat_once()
    real = store.now
    monkeypatch.setattr(store, "now", lambda: real() + module.LOST_SECONDS + 1)
    await a._beat_once()
    assert a.others() == []
    monkeypatch.setattr(store, "now", lambda: real() + module.FORGET_SECONDS + 1)
    await a._beat_once()
    assert list(await store.run("HKEYS", store.key("replicas"))) == [A.encode()]


async def test_a_long_list_is_read_seldom(
    make: Callable[[str], Replicas], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_A_SECOND", 0.01)
    a, sent = make(A), store._counters.redis_commands
    async with running_beside(a.beat(), "a"):
        await until(lambda: sent["hset"] >= 10)
    assert sent["hgetall"] == 1, "one row in 100 seconds"


@pytest.mark.parametrize(
    ("replicas", "seconds"), [(0, 2), (3, 2), (40, 2), (100, 5), (10_000, 500)]
)
def test_all_replicas_together_read_no_more_rows_than_redis_can_send(
    replicas: int, seconds: float
) -> None:
    assert module.reading_seconds(replicas) == seconds


@pytest.mark.parametrize(
    ("address", "facts"),
    [
        ("file:///etc/passwd", {"seen_at": 0}),
        ("http://u:p@10.0.0.3:5000", {"seen_at": 0}),
        ("http://10.0.0.3:5000/path", {"seen_at": 0}),
        ("http://10.0.0.3:5000", {}),
        ("http://10.0.0.3:5000", []),
    ],
)
async def test_what_is_not_understood_is_ignored(
    make: Callable[[str], Replicas], store: Store, address: str, facts: Any
) -> None:
    a, key = make(A), store.key("replicas")
    await a._beat_once()
    known = {name: store.now() for name in facts} if isinstance(facts, dict) else facts
    await store.run("HSET", key, address, json.dumps(known))
    await store.run("HSET", key, B, json.dumps({"seen_at": store.now(), "a": "newer version"}))
    await a._beat_once()
    assert a.others() == [B]
