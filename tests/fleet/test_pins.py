"""Pins that are added or removed on one replica change on all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from proxy.content.pins import Pins
from proxy.fleet import store as stores
from proxy.fleet.pins import PinRows
from proxy.fleet.shared_rows import SharedRows
from proxy.fleet.store import Argument, Store
from proxy.runtime.supervisor import running_beside
from tests.fleet.sharing import Join, asked, holds
from tests.parts.redis import Redis
from tests.running import Proxy

APP, OTHER = "docker.io/library/app:latest", "docker.io/library/other:1"


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WATCH_SECONDS", 0.05)


def pins(replica: Proxy) -> Pins:
    found: Pins = replica.app.admin._actions.pins
    return found


async def pin(replica: Proxy, name: str) -> None:
    await pins(replica).add(name)


async def all_pin(replicas: Iterable[Proxy], *names: str) -> None:
    async def agree() -> bool:
        return all(pinned(one) == set(names) for one in replicas)

    await holds(agree)


def pinned(replica: Proxy) -> set[str]:
    return set(pins(replica).added())


async def test_a_pin_is_added_and_removed_on_all(join: Join) -> None:
    replicas = [await join(), await join(), await join()]
    await pin(replicas[0], APP)
    await all_pin(replicas, APP)
    await pin(replicas[1], OTHER)
    await all_pin(replicas, APP, OTHER)
    await pins(replicas[2]).remove(APP)
    await all_pin(replicas, OTHER)
    await all_pin([await join()], OTHER)


async def test_pins_made_without_redis_are_shared_afterwards(join: Join, redis: Redis) -> None:
    replicas = [await join(), await join()]
    await pin(replicas[0], OTHER)
    await all_pin(replicas, OTHER)
    redis.kill()
    await pin(replicas[0], APP)
    redis.start()
    await all_pin(replicas, APP, OTHER)
    await all_pin([await join()], APP, OTHER)  # Redis had lost the one that it knew


async def test_a_removal_without_redis_is_shared_afterwards(
    join: Join, redis: Redis, real_limits: None
) -> None:
    replicas = [await join(), await join()]
    await pin(replicas[0], OTHER)
    await all_pin(replicas, OTHER)
    redis.pause()
    await pins(replicas[1]).remove(OTHER)
    assert pinned(replicas[1]) == set()
    redis.resume()
    await all_pin(replicas)


async def test_a_name_that_means_nothing_here_does_no_harm(join: Join, redis: Redis) -> None:
    replica = await join()
    await asked(redis, "PUBLISH", "millpond:1:default:pins", b'{"///": true, "x": 7}')
    await asked(redis, "PUBLISH", "millpond:1:default:pins", b"broken")
    await pin(replica, APP)

    async def has() -> bool:
        return APP in pinned(replica)

    await holds(has)


class Local:
    """Pins that change once more while a change is published."""

    def __init__(self) -> None:
        self.on_change: list[Callable[[str, bool], None]] = []
        self._names: list[str] = []

    def change(self, *names: str) -> None:
        self._names = list(names)
        for changed in self.on_change:
            changed(APP, APP in names)

    def added(self) -> list[str]:
        return self._names

    async def follow(self, changes: Mapping[str, bool]) -> None:
        del changes


async def test_a_pin_that_is_removed_while_it_is_published_is_removed(
    store: Store, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, publish = Local(), store.run_all
    shared = SharedRows(store, PinRows(local))

    async def removed_meanwhile(*commands: Sequence[Argument]) -> list[Any]:
        monkeypatch.setattr(store, "run_all", publish)
        answers = await publish(*commands)
        local.change()
        return answers

    monkeypatch.setattr(store, "run_all", removed_meanwhile)
    local.change(APP)

    async def is_removed() -> bool:
        return bool(await asked(redis, "HGET", store.key("pins"), APP) == b"0")

    async with running_beside(shared.run(), "share"):
        await holds(is_removed)
