"""Tag lists: bounded, and complete only if a client has read them to their end."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.names import Repo, Tag, Target
from proxy.core.records import TagList
from proxy.index.expiring import ExpiringRows
from proxy.repository import tag_lists
from proxy.repository.tag_lists import KnownList, TagLists, with_page, without
from proxy.upstream.registry import TagPage
from tests.fakes.clock import Clock

Page = tuple[TagPage, dict[str, str]]
"""A page and the query that requested it."""

APP = Target("docker.io", Repo("library/app"))
OTHER = Target("docker.io", Repo("library/app2"))


def whole(*tags: str) -> Page:
    return TagPage([*tags], {}), {}


def page(tags: str, after: str = "", next_query: str = "") -> Page:
    """A page of one-letter tags."""
    query = {"n": "2", "last": after} if after else {"n": "2"}
    return TagPage([*tags], {"n": "2", "last": next_query} if next_query else {}), query


def after(*pages: Page) -> KnownList:
    known: KnownList | None = None
    for one, query in pages:
        known = with_page(known, one, query, 1.0)
    assert known is not None
    return known


def known_tags(known: KnownList) -> tuple[str, bool]:
    return "".join(known.tags.tags), known.tags.is_complete


@pytest.fixture
async def rows(tmp_path: Path) -> AsyncIterator[ExpiringRows]:
    troubles: list[int] = []
    async with ExpiringRows(tmp_path / "rows", on_error=lambda: troubles.append(1)) as rows:
        yield rows
    assert not troubles


def test_a_whole_list_replaces_the_old_one_sorted_and_each_tag_once() -> None:
    known = after(whole("x"), whole("b", "a", "b"))
    assert known == KnownList(TagList(("a", "b"), is_complete=True, seen_at=1.0), [], {})


@pytest.mark.parametrize(
    ("pages", "tags", "is_complete"),
    [
        ([page("ab", "", "b")], "ab", False),
        ([page("ab", "", "b"), page("cd", "b", "d")], "abcd", False),
        ([page("ab", "", "b"), page("cd", "b", "d"), page("e", "d")], "abcde", True),
        ([page("cd", "b", "d"), page("ab", "", "b")], "abcd", False),
        ([page("ab", "", "b"), page("e", "d")], "abe", False),
        ([page("ab", "", "b"), page("e", "d"), page("cd", "b")], "abcd", True),
        ([whole(*"abz"), page("ab", "", "b")], "abz", True),
        ([whole(*"abz"), page("ab", "", "b"), page("c", "b")], "abc", True),
    ],
)
def test_a_list_read_from_beginning_to_end_is_complete(
    pages: list[Page], tags: str, is_complete: bool
) -> None:
    assert known_tags(after(*pages)) == (tags, is_complete)


def test_one_list_is_bounded_and_then_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_lists, "MAX_LIST_BYTES", 1000)
    fits = [f"{number:06}" for number in range(100)]
    for tags, is_complete in ((fits, True), ([*fits, "100000"], False)):
        known = after(whole(*tags))
        assert (known.tags.tags, known.tags.is_complete) == (tuple(fits), is_complete)


def test_a_page_with_too_many_names_makes_an_incomplete_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tag_lists, "MAX_NAMES", 3)
    for tags, is_complete in (("abc", True), ("abcd", False)):
        assert known_tags(after(whole(*tags))) == ("abc", is_complete)
    assert known_tags(after(page("abcd", "", "d"), page("e", "d"))) == ("abce", False)
    assert known_tags(after(page("ab", "", "b"), page("cdef", "b"))) == ("abcde", False)


def test_an_endless_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_lists, "MAX_LIST_BYTES", 1000)
    known: KnownList | None = None
    query: dict[str, str] = {}
    for number in range(200):
        next_query = {"last": f"{number:06}"}
        known = with_page(known, TagPage([f"{number:06}"] * 10, next_query), query, 1.0)
        assert sum(map(len, (*known.tags.tags, *known.read))) <= 2000
        query = next_query
    assert known is not None
    assert not known.tags.is_complete


def test_a_tag_is_removed_from_the_list_and_from_the_pages_read() -> None:
    known = without(after(whole(*"ab"), page("ab", "", "b")), Tag("a"))
    assert known is not None
    assert (known_tags(known), known.read) == (("b", True), ["b"])
    assert without(known, Tag("a")) is None, "no change"
    assert without(None, Tag("a")) is None


async def test_pages_add_up_and_are_forgotten(rows: ExpiringRows, clock: Clock) -> None:
    lists = TagLists(rows, clock)
    await lists.add(APP, *page("ab", "", "b"))
    clock.advance(5)
    await lists.add(APP, *page("c", "b"))
    assert await lists.get(APP) == TagList(("a", "b", "c"), is_complete=True, seen_at=clock())
    await lists.remove(APP, Tag("b"))
    await lists.remove(APP, Tag("none"))
    await lists.remove(OTHER, Tag("a"))
    assert await TagLists(rows, clock).get(APP) == TagList(("a", "c"), True, clock())
    assert await lists.get(OTHER) is None
    await lists.forget(APP)
    await lists.forget(OTHER)
    assert await lists.get(APP) is None


@pytest.mark.parametrize(
    "row",
    [
        5,
        [],
        {},
        [1, 2, 3, 4, 5],
        ["x", True, [], [], {}],
        [1.0, True, [7], [], {}],
        [1.0, True, [], [None], {}],
    ],
)
async def test_an_invalid_row_is_deleted(tmp_path: Path, clock: Clock, row: object) -> None:
    troubles: list[int] = []
    async with ExpiringRows(tmp_path / "rows", on_error=lambda: troubles.append(1)) as rows:
        await rows.set(("tags", *APP), row, 60)
        lists = TagLists(rows, clock)
        assert await lists.get(APP) is None
        assert troubles == [1]
        await lists.add(APP, *whole("a"))
        assert await lists.get(APP) == TagList(("a",), is_complete=True, seen_at=clock())
