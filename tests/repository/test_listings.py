"""Lists of tags: paged as asked, and kept for when upstream fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import body as spoilt
from tests.fakes.faults import header
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

IMAGE = content.image(1)
LIST = "/v2/app/tags/list"
MANY = [f"v{number:03}" for number in range(250)]


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE, tags=MANY)


def tags(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    listed: list[str] = json.loads(answer.body)["tags"]
    return listed


async def walk(proxy: Proxy, path: str, pages: int = 1000) -> tuple[list[str], list[Answer]]:
    """Follow the links of a list; return its tags and the answers."""
    seen: list[str] = []
    answers: list[Answer] = []
    while path and len(answers) < pages:
        answers.append(await proxy.get(path))
        seen += tags(answers[-1])
        link = answers[-1].headers.get("Link", "<>")
        path = link[1 : link.index(">")]
    return seen, answers


async def test_t65_the_last_good_list_is_served_while_upstream_fails(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    assert tags(await proxy.get(LIST)) == MANY
    upstream.add("library/app", content.image(2), tags=["later"])
    assert (await proxy.get("/v2/app/manifests/later")).status == 200
    for status in (503, 429):
        upstream.fail(status)
        answer = await proxy.get(LIST)
        assert tags(answer) == ["later", *MANY], "merged with the tags that were asked for"
        assert answer.headers["Warning"].startswith('299 - "stale: ')
        assert f"fwd-status={status}" in answer.headers["Cache-Status"]
        seen, answers = await walk(proxy, f"{LIST}?n=100")
        assert (seen, len(answers)) == (["later", *MANY], 3)
        assert all("Warning" in page.headers for page in answers)
        upstream.heal()
    assert proxy.numbers["stale"] == 8


async def test_t65_the_last_good_list_is_served_offline_and_after_a_restart(
    start: Start, upstream: FakeUpstream
) -> None:
    online = await start()
    await online.get(LIST)
    await online.close()
    upstream.clear()
    offline = await start(offline=True)
    answer = await offline.get(LIST)
    assert tags(answer) == MANY
    assert "offline" in answer.headers["Warning"]
    assert answer.headers["Cache-Status"] == "Millpond; hit; detail=offline"
    assert not upstream.requests
    assert (await offline.get("/v2/none/tags/list")).status == 404


async def test_only_if_cached_gives_the_last_good_list(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await proxy.get(LIST)
    upstream.clear()
    assert tags(await proxy.get(LIST, Cache_Control="only-if-cached")) == MANY
    assert not upstream.requests


async def test_t65_a_list_is_complete_only_if_all_pages_were_read(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.behaviour.page_size = 100
    seen, _ = await walk(proxy, LIST, pages=2)
    assert seen == MANY[:200]
    upstream.fail(503)
    partial = await proxy.get(LIST)
    assert tags(partial) == MANY[:200]
    assert partial.headers["Warning"].startswith('299 - "incomplete: ')
    upstream.heal()
    assert (await walk(proxy, f"{LIST}?n=100"))[0] == MANY
    upstream.fail(503)
    whole = await proxy.get(LIST)
    assert tags(whole) == MANY
    assert whole.headers["Warning"].startswith('299 - "stale: ')


async def test_pages_out_of_order_are_kept_as_an_incomplete_list(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    for query in ("?n=50&last=v199", "?n=50&last=v099"):
        assert len(tags(await proxy.get(LIST + query))) == 50
    upstream.fail(503)
    answer = await proxy.get(LIST)
    assert tags(answer) == [*MANY[100:150], *MANY[200:]]
    assert answer.headers["Warning"].startswith('299 - "incomplete: ')


async def test_a_full_page_without_a_link_is_not_a_complete_list(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    page = json.dumps({"name": "library/app", "tags": ["a", "b"]}).encode()
    upstream.fault(spoilt(page, "application/json"), header("Link", None), kind="tags", times=1)
    assert tags(await proxy.get(f"{LIST}?n=2")) == ["a", "b"]
    upstream.fail(503)
    answer = await proxy.get(LIST)
    assert answer.headers["Warning"].startswith('299 - "incomplete: ')


async def test_a_new_complete_list_replaces_the_old_one(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await proxy.get(LIST)
    upstream.remove_tag("library/app", "v007")
    await proxy.get(LIST)
    upstream.fail(503)
    assert "v007" not in tags(await proxy.get(LIST))


@pytest.mark.parametrize("was_pulled", [True, False])
async def test_a_tag_deleted_upstream_is_removed_from_the_last_known_list(
    start: Start, upstream: FakeUpstream, clock: Clock, *, was_pulled: bool
) -> None:
    proxy = await start(freshness={"negative_ttl": 0})
    await proxy.get(LIST)
    if was_pulled:
        assert (await proxy.get("/v2/app/manifests/v007")).status == 200
        clock.advance(4000)
    upstream.remove_tag("library/app", "v007")
    assert (await proxy.get("/v2/app/manifests/v007")).status == 404
    upstream.fail(503)
    assert tags(await proxy.get(LIST)) == [tag for tag in MANY if tag != "v007"]


async def test_the_list_of_a_deleted_repository_is_forgotten(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await proxy.get(LIST)
    upstream.remove("library/app")
    assert (await proxy.get(LIST)).status == 404
    upstream.fail(503)
    assert (await proxy.get(LIST)).status == 502


async def test_the_last_known_list_expires_with_stale_if_error(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"tag_ttl": "1m", "stale_if_error": "1h"})
    await proxy.get(LIST)
    upstream.fail(503)
    clock.advance(3600)
    assert (await proxy.get(LIST)).status == 200
    clock.advance(100)
    assert (await proxy.get(LIST)).status == 502


async def test_a_denial_is_not_replaced_by_the_last_known_list(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await proxy.get(LIST)
    upstream.fail(403)
    assert (await proxy.get(LIST)).status == 403


async def test_invalid_names_in_a_list_are_not_kept(proxy: Proxy, upstream: FakeUpstream) -> None:
    listed: list[Any] = ["good", "x" * 129, "a/b", "", "\ud800", 7, None, "a\nb"]
    page = json.dumps({"name": "library/app", "tags": listed}).encode()
    upstream.fault(spoilt(page, "application/json"), kind="tags", times=1)
    await proxy.get(LIST)
    upstream.fail(503)
    assert tags(await proxy.get(LIST)) == ["good"]


@pytest.mark.parametrize(
    ("n", "sent"),
    [("1", "1"), ("9999", "9999"), ("10000", "10000"), ("10001", "10000"), ("999999999", "10000")],
)
async def test_n_is_bounded(proxy: Proxy, upstream: FakeUpstream, n: str, sent: str) -> None:
    assert (await proxy.get(f"{LIST}?n={n}")).status == 200
    assert upstream.requests[-1].query["n"] == sent
    upstream.fail(503)
    assert tags(await proxy.get(f"{LIST}?n={n}")) == MANY[: int(sent)]


@pytest.mark.parametrize(
    "n", ["-1", "%2B1", "1.5", "1e3", "x", "%20", "0x10", "1_0", "%D9%A1", "%C2%B2", "9999999999"]
)
async def test_an_invalid_n_is_refused(proxy: Proxy, upstream: FakeUpstream, n: str) -> None:
    for page in (LIST, "/v2/_catalog"):
        answer = await proxy.get(f"{page}?n={n}")
        assert (answer.status, b"PAGINATION_NUMBER_INVALID" in answer.body) == (400, True)
    assert not upstream.requests


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize(
    ("query", "expected", "last"),
    [
        ("?n=0", [], None),
        ("?n=249", MANY[:249], "v248"),
        ("?n=250", MANY, None),
        ("?n=251", MANY, None),
        ("?n=2&last=v247", MANY[248:], None),
        ("?n=1&last=v247", ["v248"], "v248"),
        ("?last=v249", [], None),
        ("?last=v2470", MANY[248:], None),
        ("?n=", MANY, None),
    ],
)
async def test_n_and_last_select_the_right_tags(
    start: Start,
    upstream: FakeUpstream,
    query: str,
    expected: list[str],
    last: str | None,
    *,
    online: bool,
) -> None:
    proxy = await start()
    await proxy.get(LIST)
    if not online:
        upstream.fail(503)
    answer = await proxy.get(LIST + query)
    assert tags(answer) == expected
    link = answer.headers.get("Link")
    assert (link is None) == (last is None)
    assert last is None or f"last={last}" in str(link)


async def test_n_works_with_an_upstream_that_ignores_it(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    page = json.dumps({"name": "library/app", "tags": ["c", "a", "b"]}).encode()
    upstream.fault(spoilt(page, "application/json"), header("Link", None), kind="tags")
    for count, expected in enumerate(([], ["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"])):
        assert tags(await proxy.get(f"{LIST}?n={count}")) == expected


async def test_without_a_stored_list_only_an_outage_is_visible(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    (tmp_path / "cache/index").mkdir(parents=True)
    (tmp_path / "cache/index/expiring").write_text("no directory")
    proxy = await start()
    for path in (LIST, f"/v2/app/referrers/{content.digest(b'subject')}"):
        assert (await proxy.get(path)).status == 200
    assert (await proxy.get("/v2/app/manifests/none")).status == 404
    assert proxy.stats["cache"]["storage_errors"] > 0
    upstream.fail(503)
    assert (await proxy.get(LIST)).status == 502
