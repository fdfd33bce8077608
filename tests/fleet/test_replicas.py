"""Replicas in the test's own process, with a real Redis."""

from tests.parts.process import free_port
from tests.parts.redis import Redis
from tests.running import Start


async def test_a_replica_serves_and_counts_what_it_asks_redis(start: Start, redis: Redis) -> None:
    proxy = await start(fleet={"redis": redis.url})
    assert (await proxy.get("/v2/")).status == 200
    metrics = (await proxy.get("/metrics")).body.decode()
    assert "millpond_fleet_redis_failures_total 0.0" in metrics


async def test_a_replica_starts_and_serves_without_redis(start: Start) -> None:
    proxy = await start(fleet={"redis": f"redis://:hunter2@127.0.0.1:{free_port()}"})
    assert (await proxy.get("/v2/")).status == 200
    assert "hunter2" not in proxy.log.getvalue()
