"""Rows of two replicas; pins and images in use have tests of their own."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

import pytest

from proxy.fleet import shared_rows
from proxy.fleet.shared_rows import SharedRows
from proxy.fleet.store import Store
from proxy.runtime.supervisor import running_beside
from tests.fleet.sharing import holds


class Rows:
    """Rows in memory."""

    channel = "test"
    absent = b"gone"

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.changed: Callable[[str], None] = lambda _: None

    def set(self, name: str, value: bytes) -> None:
        self.values[name] = value
        self.changed(name)

    def listen(self, changed: Callable[[str], None]) -> None:
        self.changed = changed

    def rows(self) -> Mapping[str, bytes]:
        return self.values

    def message(self, name: str, value: bytes) -> bytes:
        return name.encode()

    def names_in(self, message: bytes) -> Iterable[str]:
        return message.decode().split(" ")

    def has_ended(self, value: bytes) -> bool:
        return value == b"ended"

    async def follow(self, rows: Mapping[str, bytes]) -> None:
        self.values.update(rows)


@asynccontextmanager
async def sharing(store: Store, rows: Rows) -> AsyncIterator[SharedRows]:
    shared = SharedRows(store, rows)
    async with running_beside(shared.run(), "share"):
        yield shared


async def test_a_change_reaches_redis_and_a_removal_too(store: Store) -> None:
    rows = Rows()
    async with sharing(store, rows):
        rows.set("a", b"1")

        async def is_there() -> bool:
            return bool(await store.run("HGET", store.key("test"), "a") == b"1")

        await holds(is_there)
        del rows.values["a"]
        rows.changed("a")

        async def is_gone() -> bool:
            return bool(await store.run("HGET", store.key("test"), "a") == b"gone")

        await holds(is_gone)


async def test_a_change_here_is_not_undone_by_an_older_one_from_elsewhere(store: Store) -> None:
    rows = Rows()
    shared = SharedRows(store, rows)
    await store.run("HSET", store.key("test"), "a", "old", "b", "theirs")
    shared._on_message(b"a b")
    rows.set("a", b"new")
    await shared._listen()
    assert rows.values == {"a": b"new", "b": b"theirs"}


async def test_rows_that_have_ended_leave_redis(store: Store) -> None:
    rows = Rows()
    await store.run("HSET", store.key("test"), "a", "ended", "b", "1")
    async with sharing(store, rows) as shared:
        shared._on_gap()

        async def is_followed() -> bool:
            return rows.values == {"b": b"1"}

        await holds(is_followed)
        assert await store.run("HKEYS", store.key("test")) == [b"b"]


async def test_names_that_wait_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rows, "MAX_ROWS", 3)
    shared = SharedRows(store, Rows())
    shared._on_message(b" ".join(str(number).encode() for number in range(100)))
    assert len(shared._reported) == 3
