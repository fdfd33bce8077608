import asyncio
import time

import pytest
from structlog.testing import capture_logs

from proxy.core.errors import FleetUnavailable
from proxy.fleet import store as stores
from proxy.fleet.store import Store, Subscription
from proxy.runtime.part_counters import FleetCounters
from proxy.runtime.supervisor import running_beside
from tests.fleet.conftest import connected
from tests.parts.process import free_port
from tests.parts.redis import Redis
from tests.running import until


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)


async def test_a_command_is_answered(store: Store) -> None:
    key = store.key("tag", "docker.io", "nginx")
    assert key == f"millpond:{stores.SCHEMA}:default:tag:docker.io:nginx"
    assert await store.run("SET", key, b"1", "NX", "PX", 5000)
    assert await store.run("SET", key, b"2", "NX", "PX", 5000) is None
    assert await store.run("GET", key) == b"1"


async def test_several_commands_make_one_round_trip(store: Store) -> None:
    key = store.key("x")
    answers = await store.run_all(["SET", key, b"5"], ["INCR", key], ["LPUSH", key, 1])
    assert answers[:2] == [True, 6]
    assert isinstance(answers[2], Exception)


async def test_a_script_survives_that_redis_forgets_it(store: Store) -> None:
    double = store.script("double", "return tonumber(ARGV[1]) * 2 .. KEYS[1]")
    assert await double(["x"], [21]) == b"42x"
    await store.run("SCRIPT", "FLUSH")
    assert await double(["y"], [4]) == b"8y"


async def test_a_unix_socket_works_too(redis: Redis) -> None:
    async with connected(f"unix://{redis.socket}") as store:
        assert await store.run("PING")


async def test_fleets_do_not_see_each_other(redis: Redis) -> None:
    async with connected(redis.url, "a") as a, connected(redis.url, "b") as b:
        await a.run("SET", a.key("x"), "1")
        assert await b.run("GET", b.key("x")) is None


async def test_a_refused_command_is_our_error_and_redis_counts_as_there(store: Store) -> None:
    await store.run("SET", store.key("x"), "text")
    with pytest.raises(FleetUnavailable):
        await store.run("INCR", store.key("x"))
    assert await store.run("GET", store.key("x")) == b"text"


async def test_without_redis_only_the_first_command_costs_time() -> None:
    counters = FleetCounters()
    store = Store(f"redis://127.0.0.1:{free_port()}", "default", counters)
    for _ in range(1000):
        with pytest.raises(FleetUnavailable):
            await store.run("PING")
    assert counters.redis_commands.total() == 1
    assert counters.redis_skipped == 999
    await store.close()


async def test_a_redis_that_hangs_is_left_alone_in_time(redis: Redis, real_limits: None) -> None:
    async with connected(redis.url) as store:
        await store.run("PING")
        redis.pause()
        started = time.monotonic()
        with pytest.raises(FleetUnavailable):
            await store.run("PING")
        assert time.monotonic() - started < 20, "on a loaded machine"
        assert store.is_unreachable
        redis.resume()
        await until(lambda: not store.is_unreachable)
        assert await store.run("PING")


async def test_redis_is_used_again_once_it_is_back(redis: Redis) -> None:
    async with connected(redis.url) as store:
        redis.kill()
        await until(lambda: store.is_unreachable)
        redis.start()
        await until(lambda: not store.is_unreachable)
        assert await store.run("PING")


async def test_a_subscription_gets_messages_and_is_told_of_gaps(redis: Redis) -> None:
    counters, heard, gaps = FleetCounters(), [], []
    store = Store(redis.url, "default", counters)
    store.subscribe("tags", Subscription(heard.append, lambda: gaps.append(len(heard))))
    async with running_beside(store.watch(), "watch"):
        await until(lambda: gaps == [0])
        await store.publish("tags", b"one")
        await until(lambda: heard == [b"one"])
        redis.kill()
        await until(lambda: store.is_unreachable)
        redis.start()
        await until(lambda: gaps == [0, 1])
        await store.publish("tags", b"two")
        await until(lambda: heard == [b"one", b"two"])
    await store.close()


async def test_the_time_is_that_of_redis(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 60)
    async with connected(redis.url) as store:
        await until(lambda: abs(store.now() - real()) < 1)


async def test_many_commands_at_once_share_few_connections(store: Store) -> None:
    await asyncio.gather(*(store.run("SET", store.key(str(i)), i) for i in range(500)))
    info = await store.run("INFO", "clients")
    assert info["connected_clients"] <= stores.CONNECTIONS + 1


async def test_errors_and_names_do_not_show_the_password() -> None:
    store = Store(f"redis://:hunter2@127.0.0.1:{free_port()}", "default", FleetCounters())
    with pytest.raises(FleetUnavailable) as raised, capture_logs() as logged:
        await store.run("PING")
    assert "hunter2" not in f"{raised.value} {store!r} {raised.value.__cause__}"
    [line] = logged
    assert line["reason"] == "ConnectionError", "a message may quote the URL"
    await store.close()
