"""All replicas know the limits of a registry within a second."""

import json
from collections.abc import Mapping

import pytest

from proxy.fleet import store as stores
from proxy.fleet.limits import SharedLimits
from proxy.fleet.store import Store
from proxy.runtime.supervisor import running_beside
from tests.fakes import content
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import Join, asked, holds, soon
from tests.parts.redis import Redis
from tests.running import Proxy

IMAGE, OTHER = content.image(1), content.image(2)
WITHIN = 1.0


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    upstream.add("library/other", OTHER)


def remaining(replica: Proxy) -> int | None:
    limit = replica.numbers["rate_limit"]
    return None if limit is None else int(limit["remaining"])


async def test_a_rate_limit_is_known_to_all(join: Join, upstream: FakeUpstream) -> None:
    first, second = await join(), await join()
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=50)
    await first.get("/v2/app/manifests/latest")

    async def knows() -> bool:
        return remaining(second) == 49

    await soon(knows, WITHIN)
    late = await join()

    async def learns() -> bool:
        return remaining(late) == 49

    await soon(learns, WITHIN)


async def test_a_429_to_one_stops_all(join: Join, upstream: FakeUpstream) -> None:
    patience = {"retries": 0, "resumes": 0, "failures": 1000, "cool_down": "5m"}
    first, second = await join(patience=patience), await join(patience=patience)
    upstream.fail(429, retry_after=600, method="GET", kind="manifest")
    assert (await first.get("/v2/app/manifests/latest")).status == 429

    async def knows() -> bool:
        return bool(
            second.app.admin._upstreams["docker.io"].circuit_breaker.shared_state()["cooling"]
        )

    await soon(knows, WITHIN)
    upstream.heal()
    upstream.clear()
    answer = await second.get("/v2/other/manifests/latest")
    assert (answer.status, upstream.count()) == (429, 0)
    assert int(answer.headers["Retry-After"]) > 500


async def test_a_circuit_opens_and_closes_for_all(join: Join, upstream: FakeUpstream) -> None:
    patience = {"retries": 0, "resumes": 0, "failures": 2, "pause": "3s"}
    first, second = await join(patience=patience), await join(patience=patience)
    upstream.fail(503, kind="manifest", times=2)
    for repository in ("app", "other"):
        assert (await first.get(f"/v2/{repository}/manifests/latest")).status == 502

    async def is_open() -> bool:
        return bool(second.numbers["circuit"] == "open")

    await soon(is_open, WITHIN)
    upstream.clear()
    assert (await second.get("/v2/app/manifests/latest")).status == 502
    assert upstream.count() == 0

    async def is_closed() -> bool:
        await first.get("/v2/app/manifests/latest")
        return all(one.numbers["circuit"] == "closed" for one in (first, second))

    await holds(is_closed, 20)


async def test_without_redis_each_replica_has_its_own_limits(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    first, second = await join(), await join()
    redis.kill()
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=50)
    await first.get("/v2/app/manifests/latest")
    assert (remaining(first), remaining(second)) == (49, None)
    redis.start()

    async def knows() -> bool:
        return remaining(second) == 49

    await holds(knows)


class LimitedUpstream:
    """An upstream that notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[Mapping[str, object]] = []

    def shared_state(self) -> dict[str, object]:
        return {"remaining": 1}

    def apply_shared_state(self, state: Mapping[str, object], seconds_ago: float) -> None:
        del seconds_ago
        self.heard.append(state)


async def test_the_limits_of_single_clients_are_told_to_nobody_and_believed_of_nobody(
    store: Store, redis: Redis
) -> None:
    own, shared = LimitedUpstream(), LimitedUpstream()
    limits = SharedLimits(store, {"own": own, "shared": shared}, lambda name: name == "shared")
    async with running_beside(limits.follow(), "follow"):
        for name in ("own", "shared"):
            limits.change(name)

        async def is_told() -> bool:
            return bool(await asked(redis, "EXISTS", store.key("limits", "shared")))

        await holds(is_told)
        assert not await asked(redis, "EXISTS", store.key("limits", "own"))
    for name in ("own", "shared"):
        message = json.dumps({"upstream": name, "at": store.now(), "remaining": 5})
        limits._on_message(message.encode())
    assert not own.heard
    assert shared.heard
