"""Kept tag lists: bounded, expiring, and never in the way."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from proxy.core.errors import StorageError
from proxy.core.names import Repo, Tag, Target
from proxy.core.records import ListedPage
from proxy.index import listings
from proxy.index.listings import TagLists
from proxy.index.table import Table
from tests.fakes.clock import Clock

APP = Target("docker.io", Repo("library/app"))
DAY = 86400.0

Open = Callable[[], AbstractAsyncContextManager[TagLists]]


def whole(*tags: str) -> ListedPage:
    return ListedPage([*tags], {}, {}, is_whole=True)


def repository(number: int) -> Target:
    return Target("docker.io", Repo(f"library/app{number}"))


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Open:
    @asynccontextmanager
    async def opened() -> AsyncIterator[TagLists]:
        troubles: list[int] = []
        lists = TagLists(tmp_path / "lists", clock=clock, on_trouble=lambda: troubles.append(1))
        async with lists:
            yield lists
        assert not troubles

    return opened


async def test_a_list_survives_a_restart_and_ends_after_a_month(opened: Open, clock: Clock) -> None:
    async with opened() as lists:
        await lists.add(APP, whole("b", "a", "b"))
    clock.advance(29 * DAY)
    async with opened() as lists:
        kept = await lists.get(APP)
        assert kept is not None
        assert (kept.tags, kept.is_complete) == (("a", "b"), True)
        clock.advance(2 * DAY)
        assert await lists.get(APP) is None
        await lists.add(repository(1), whole("x"))
        assert [key for batch in _rows(lists) for key in batch] == [[*repository(1)]]


async def test_the_number_of_lists_is_bounded(
    opened: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MAX_LISTS", 3)
    async with opened() as lists:
        for number in range(5):
            await lists.add(repository(number), whole("x"))
            clock.advance(1)
        await lists.add(repository(2), whole("y"))
    async with opened() as lists:
        await lists.add(repository(9), whole("z"))
        kept = [number for number in range(10) if await lists.get(repository(number))]
        assert kept == [2, 4, 9], "those that were seen longest ago are gone"


async def test_the_bytes_of_all_lists_are_bounded(
    opened: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MAX_BYTES", 10_000)
    tags = [f"{number:08}" for number in range(200)]
    async with opened() as lists:
        for number in range(20):
            await lists.add(repository(number), whole(*tags))
            clock.advance(1)
        rows = [row for batch in lists._table.batches(lambda key, row: row) for row in batch]  # type: ignore[union-attr]
        assert 1 <= len(rows) <= 4
        assert sum(len(json.dumps(row)) for row in rows) <= 10_000
        assert await lists.get(repository(19)) is not None


async def test_one_list_is_bounded_and_then_incomplete(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MAX_LIST_BYTES", 1000)
    fits = [f"{number:06}" for number in range(100)]
    async with opened() as lists:
        await lists.add(APP, whole(*fits))
        kept = await lists.get(APP)
        assert kept is not None
        assert (kept.tags, kept.is_complete) == (tuple(fits), True)
        await lists.add(APP, whole(*fits, "100000"))
        kept = await lists.get(APP)
        assert kept is not None
        assert (kept.tags, kept.is_complete) == (tuple(fits), False)


async def test_a_page_with_too_many_names_makes_an_incomplete_list(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "MAX_NAMES", 3)
    async with opened() as lists:
        for tags, is_complete in (("abc", True), ("abcd", False)):
            await lists.add(APP, whole(*tags))
            kept = await lists.get(APP)
            assert kept is not None
            assert (kept.tags, kept.is_complete) == (tuple("abc"), is_complete)
        await lists.add(APP, ListedPage([*"abcd"], {}, {"last": "d"}, is_whole=False))
        await lists.add(APP, ListedPage([*"e"], {"last": "d"}, {}, is_whole=False))
        kept = await lists.get(APP)
        assert kept is not None
        assert not kept.is_complete


async def test_a_walk_without_end_is_bounded(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MAX_LIST_BYTES", 1000)
    async with opened() as lists:
        query: dict[str, str] = {}
        for number in range(200):
            further = {"last": f"{number:06}"}
            await lists.add(APP, ListedPage([f"{number:06}"] * 10, query, further, is_whole=False))
            query = further
        kept = await lists.get(APP)
        assert kept is not None
        assert not kept.is_complete
        [[row]] = lists._table.batches(lambda key, row: row)  # type: ignore[union-attr]
        assert len(json.dumps(row)) < 5000


async def test_one_tag_and_one_list_are_forgotten(opened: Open) -> None:
    async with opened() as lists:
        await lists.add(APP, whole("a", "b"))
        await lists.forget_tag(APP, Tag("a"))
        await lists.forget_tag(APP, Tag("none"))
        await lists.forget_tag(repository(1), Tag("a"))
        kept = await lists.get(APP)
        assert kept is not None
        assert (kept.tags, kept.is_complete) == (("b",), True)
        await lists.forget(APP)
        await lists.forget(repository(1))
        assert await lists.get(APP) is None


@pytest.mark.parametrize("row", [None, 5, [], {}, [1, 2, 3, 4, 5], ["x", True, [], [], {}]])
async def test_a_row_that_cannot_be_read_is_no_list(
    opened: Open, tmp_path: Path, row: object
) -> None:
    table = Table(tmp_path / "lists")
    table.set([([*APP], row), (["odd"], row)])
    table.close()
    async with opened() as lists:
        assert await lists.get(APP) is None
        await lists.add(APP, whole("a"))
        kept = await lists.get(APP)
        assert kept is not None
        assert kept.tags == ("a",)


async def test_a_disk_that_fails_only_costs_the_lists(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> Table:
        raise StorageError("no space")

    monkeypatch.setattr(listings, "Table", fails)
    troubles: list[int] = []
    lists = TagLists(tmp_path / "lists", clock=clock, on_trouble=lambda: troubles.append(1))
    async with lists:
        await lists.add(APP, whole("a"))
        assert await lists.get(APP) is None
        await lists.forget(APP)
        await lists.forget_tag(APP, Tag("a"))
    assert troubles == [1]


def _rows(lists: TagLists) -> list[list[object]]:
    assert lists._table is not None
    return list(lists._table.batches(lambda key, _: key))
