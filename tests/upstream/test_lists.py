"""Lists of a registry that are too long, and bodies with a wrong length."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from proxy.upstream.lists import MAX_BYTES, MAX_PAGES, MAX_REFERRERS, MAX_TAGS
from tests.fakes import content
from tests.fakes.faults import Effect, body, delay, header
from tests.fakes.records import Record
from tests.fakes.replies import Reply
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Start, until

IMAGE = content.image(1)
REFERRERS = f"/v2/app/referrers/{IMAGE.digest}"
TAGS = "/v2/app/tags/list"


def entry(number: int, size: int = 0) -> dict[str, Any]:
    """What refers to an image, in about ``size`` bytes."""
    return {
        "mediaType": content.OCI_MANIFEST,
        "digest": content.digest(str(number).encode()),
        "size": 100,
        "annotations": {"text": "x" * size},
    }


def index(*entries: dict[str, Any]) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": content.OCI_INDEX, "manifests": entries}
    ).encode()


def pages(make: Callable[[int], bytes]) -> Effect:
    """Page after page without end."""

    def effect(record: Record, reply: Reply) -> Reply:
        number = int(record.query.get("last", "0"))
        link = f'<{record.path}?last={number + 1}>; rel="next"'
        made = replace(reply, status=200, body=make(number)).with_header("Link", link)
        return made.with_header("Content-Type", content.OCI_INDEX)

    return effect


def refused(answer: Answer, words: str) -> None:
    assert answer.status == 502
    [error] = json.loads(answer.body)["errors"]
    assert error["code"] == "UNAVAILABLE"
    assert words in error["message"]


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)


async def test_t49_pages_of_referrers_in_bytes(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start()
    page = index(entry(0, MAX_BYTES // 4))
    upstream.fault(pages(lambda _: page), kind="referrers")
    refused(await proxy.get(REFERRERS), "larger than")
    assert upstream.count(kind="referrers") == 4


async def test_t49_pages_of_referrers_in_number(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start()
    page = index()
    upstream.fault(pages(lambda _: page), kind="referrers")
    refused(await proxy.get(REFERRERS), "pages")
    assert upstream.count(kind="referrers") == MAX_PAGES + 1


async def test_t49_pages_of_referrers_in_seconds(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(timeouts={"answer": "1s"})
    page = index()
    upstream.fault(pages(lambda _: page), delay(0.4), kind="referrers")
    answer = await proxy.get(REFERRERS)
    assert answer.status == 504
    assert b"does not end in time" in answer.body
    assert upstream.count(kind="referrers") < 5


async def test_t49_entries_of_referrers(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start()
    upstream.fault(
        pages(lambda page: index(*(entry(page * 4000 + n) for n in range(4000)))),
        kind="referrers",
    )
    refused(await proxy.get(REFERRERS), f"more than {MAX_REFERRERS} entries")
    assert upstream.count(kind="referrers") == 3


async def test_t49_many_referrers_are_passed_on_whole_and_not_kept(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start()
    entries = [entry(number, 300) for number in range(3000)]
    page = index(*entries)
    upstream.fault(body(page, content.OCI_INDEX), kind="referrers")
    for _ in range(2):
        answer = await proxy.get(REFERRERS)
        assert json.loads(answer.body)["manifests"] == entries
    assert upstream.count(kind="referrers") == 2


async def test_t49_entries_of_the_fallback_tag(start: Start, upstream: FakeUpstream) -> None:
    upstream.behaviour.referrers = False
    many = index(*(entry(number) for number in range(MAX_REFERRERS + 1)))
    tag = IMAGE.digest.replace(":", "-")
    upstream.add_manifest("library/app", many, content.OCI_INDEX, tags=[tag])
    refused(await (await start()).get(REFERRERS), f"more than {MAX_REFERRERS} entries")


@pytest.mark.parametrize("path", [REFERRERS, TAGS])
@pytest.mark.parametrize(
    ("piece", "count"),
    [
        (b"[],", 150_000),
        (b"{},", 150_000),
        (b"[],", 2_700_000),
        (b"1,", 600_000),
        (b'"",', 600_000),
    ],
)
async def test_t49_many_small_values_are_not_parsed(
    start: Start, upstream: FakeUpstream, path: str, piece: bytes, count: int
) -> None:
    proxy = await start()
    many = b'{"manifests":[' + piece * count + b'0],"tags":[]}'
    upstream.fault(body(many, content.OCI_INDEX))
    begun = time.process_time()
    refused(await proxy.get(path), "too many values")
    assert time.process_time() - begun < 2
    many = b'{"manifests":[],"tags":[' + piece * 10 + b'"a"]}'
    upstream.heal()
    upstream.fault(body(many, content.OCI_INDEX))
    assert (await proxy.get(path)).status == 200


async def test_t49_a_page_of_tags(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start()
    upstream.fault(body(b'{"tags":["' + b"x" * MAX_BYTES + b'"]}'), kind="tags")
    refused(await proxy.get(TAGS), "larger than")
    upstream.heal()
    upstream.fault(body(json.dumps({"tags": ["x"] * (MAX_TAGS + 1)}).encode()), kind="tags")
    refused(await proxy.get(TAGS), "entries")
    upstream.heal()
    upstream.fault(body(json.dumps({"tags": ["x"] * MAX_TAGS}).encode()), kind="tags")
    assert len(json.loads((await proxy.get(TAGS)).body)["tags"]) == MAX_TAGS


async def test_t49_large_answers_are_read_a_few_at_a_time(
    start: Start, upstream: FakeUpstream
) -> None:
    """The others wait for them, and small answers wait for nobody."""
    proxy = await start()
    upstream.add("library/other", IMAGE)
    upstream.fault(
        body(json.dumps({"tags": ["x" * 1000] * 6000}).encode()),
        kind="tags",
        repository="library/app",
    )
    gate = upstream.stall(4 << 20, kind="tags", repository="library/app")
    asked = [asyncio.create_task(proxy.get(TAGS)) for _ in range(12)]
    await upstream.until(lambda: upstream.count(kind="tags") == 12)
    await until(lambda: proxy.numbers["bytes_from_upstream"] >= 4 * (4 << 20))
    assert (await proxy.get("/v2/other/tags/list")).status == 200
    assert proxy.numbers["bytes_from_upstream"] < 4 * (4 << 20) + 12 * (1 << 20)
    gate.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 12


@pytest.mark.parametrize("kind", ["tags", "manifest", "blob", "token"])
async def test_t49_a_body_without_end_beside_an_error_is_cut(
    start: Start, upstream: FakeUpstream, kind: Any
) -> None:
    """Of an error, and of a token: what exceeds 64 KiB is not waited for."""
    upstream.auth.scheme = "bearer"
    proxy = await start(timeouts={"answer": "5s"})
    endless = b" " * (64 << 20)
    status = 200 if kind == "token" else 400

    def effect(_record: Record, reply: Reply) -> Reply:
        return replace(reply, status=status, body=endless)

    rule = upstream.fault(effect, header("Content-Type", "text/plain"), kind=kind)
    path = {"tags": TAGS, "blob": f"/v2/app/blobs/{IMAGE.layers[0]}"}.get(
        kind, "/v2/app/manifests/latest"
    )
    answer = await proxy.get(path)
    assert answer.status == 502
    assert rule.used == 1
    records = upstream.token_requests if kind == "token" else upstream.requests
    [sent] = [record.sent for record in records if record.status == status]
    assert sent < 16 << 20


@pytest.mark.parametrize(
    ("query", "status"), [("last=b", 200), ("last=\u00e4", 502), ("page=2", 502)]
)
async def test_a_link_that_cannot_be_followed(
    start: Start, upstream: FakeUpstream, query: str, status: int
) -> None:
    upstream.fault(header("Link", f'</v2/library/app/tags/list?{query}>; rel="next"'), kind="tags")
    answer = await (await start()).get(TAGS)
    assert answer.status == status
    assert status == 200 or b"cannot be followed" in answer.body
