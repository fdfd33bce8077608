"""Answers to clients: why a request failed, in time, and what really happened."""

import asyncio
import json
import time

import pytest

from proxy.settings import Settings
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import header, slow
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start, until

IMAGE = content.image(1, layers=(2000,))
OTHER = content.image(2)
[LAYER] = IMAGE.layers
LATEST = "/v2/app/manifests/latest"
BLOB = f"/v2/app/blobs/{LAYER}"
CONTENT = (LATEST, f"/v2/app/manifests/{OTHER.digest}", BLOB)
EVERYTHING = ("/v2/app/tags/list", f"/v2/app/referrers/{IMAGE.digest}", *CONTENT)
REFUSALS = [
    (401, 403, "DENIED"),
    (403, 403, "DENIED"),
    (429, 429, "TOOMANYREQUESTS"),
    (400, 502, "UNAVAILABLE"),
    (500, 502, "UNAVAILABLE"),
    (503, 502, "UNAVAILABLE"),
]


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OTHER, tags=["other"])
    upstream.add("library/app", IMAGE)


def code(answer: Answer) -> str:
    [error] = json.loads(answer.body)["errors"]
    return str(error["code"])


@pytest.mark.parametrize(("said", "status", "expected"), REFUSALS)
async def test_t27_a_refusal_is_neither_absence_nor_remembered(
    proxy: Proxy, upstream: FakeUpstream, said: int, status: int, expected: str
) -> None:
    for path in EVERYTHING:
        upstream.fail(said)
        for _ in range(2):
            answer, head = await proxy.get(path), await proxy.head(path)
            assert (answer.status, head.status) == (status, status), path
            assert code(answer) == expected
        upstream.heal()
        assert (await proxy.get(path)).status == 200, path
        await proxy.settled()


@pytest.mark.parametrize(("said", "status", "expected"), REFUSALS)
async def test_c15_the_answer_names_the_upstream_and_what_it_said(
    proxy: Proxy, upstream: FakeUpstream, said: int, status: int, expected: str
) -> None:
    upstream.fail(said, retry_after=9)
    answer = await proxy.get(LATEST)
    assert (answer.status, code(answer)) == (status, expected)
    text = answer.body.decode()
    assert "docker.io" in text or "127.0.0.1" in text
    assert said == 401 or str(said) in text
    assert ("Retry-After" in answer.headers) == (said in {429, 500, 503})


async def test_c15_an_upstream_that_cannot_be_reached_is_told(
    proxy: Proxy, upstream: FakeUpstream, start: Start
) -> None:
    await upstream.stop()
    answer = await proxy.get(LATEST)
    assert (answer.status, code(answer)) == (502, "UNAVAILABLE")
    assert b"cannot be reached" in answer.body
    await proxy.close()
    nowhere = await start(hub={"url": "http://registry.invalid"})
    answer = await nowhere.get(LATEST)
    assert (answer.status, code(answer)) == (502, "UNAVAILABLE")
    assert b"docker.io" in answer.body


async def test_t29_no_rate_limit_headers_mean_no_limit(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=1)
    assert (await proxy.get(LATEST)).status == 200
    assert proxy.numbers["rate_limit"]["remaining"] == 0
    upstream.behaviour.rate_limit = None  # as when the account has been paid for
    clock.advance(1e6)
    assert (await proxy.get(LATEST)).status == 200
    assert proxy.numbers["rate_limit"] is None
    for number in range(5):
        upstream.add(f"library/more{number}", content.image(10 + number))
        assert (await proxy.get(f"/v2/more{number}/manifests/latest")).status == 200


@pytest.mark.parametrize("value", ["", "unlimited", "-1;w=60", "1e3", "100;w=x", "9" * 40])
async def test_t29_rate_limit_headers_may_say_anything(
    proxy: Proxy, upstream: FakeUpstream, value: str
) -> None:
    for name in ("ratelimit-limit", "ratelimit-remaining"):
        upstream.fault(header(name, value), kind="manifest")
    for path in (LATEST, "/v2/app/manifests/none", f"/v2/app/manifests/{IMAGE.digest}"):
        assert (await proxy.get(path)).status in {200, 404}
    assert (await proxy.get("/-/stats")).status == 200
    assert (await proxy.get("/metrics")).status == 200


async def test_t39_a_slow_token_holds_up_its_own_repository_only(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    for number in range(80):
        upstream.add(f"library/app{number}", content.image(number))
    gate = upstream.hold(kind="token", times=1)
    first = asyncio.create_task(proxy.get("/v2/app0/manifests/latest"))
    await upstream.until(lambda: len(upstream.token_requests) == 1)
    async with asyncio.timeout(60):
        rest = [proxy.get(f"/v2/app{number}/manifests/latest") for number in range(1, 80)]
        assert {answer.status for answer in await asyncio.gather(*rest)} == {200}
    assert not first.done()
    gate.set()
    assert (await first).status == 200


async def test_t41_every_way_of_being_served_from_here_is_a_hit(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    assert (await proxy.get(LATEST)).status == 200
    assert (await proxy.get(BLOB)).status == 200
    await proxy.settled()
    before = proxy.numbers
    assert (before["misses"], before["hits"]) == (2, 0)
    asked = len(upstream.requests)
    size = 0
    for answer in (
        await proxy.get(LATEST),
        await proxy.get(f"/v2/app/manifests/{IMAGE.digest}"),
        await proxy.head(LATEST),
        await proxy.get(BLOB),
        await proxy.head(BLOB),
        await proxy.get(BLOB, Range="bytes=10-19"),
        await proxy.get(BLOB, Range="bytes=0-9,20-29"),
        await proxy.get(BLOB, If_None_Match=f'"{LAYER}"'),
        await proxy.get(LATEST, If_None_Match=f'"{IMAGE.digest}"'),
    ):
        assert answer.status in {200, 206, 304}
        size += len(answer.body)
    after = proxy.numbers
    assert after["hits"] == 9
    assert after["misses"] == 2
    assert after["bytes_to_clients"] - before["bytes_to_clients"] == size
    assert after["bytes_from_upstream"] == before["bytes_from_upstream"]
    assert len(upstream.requests) == asked
    assert after["errors"] == {}


async def test_t41_a_client_that_left_got_no_more_than_was_sent(
    start: Start, upstream: FakeUpstream
) -> None:
    big = content.image(9, layers=(20_000_000,))
    upstream.add("library/big", big)
    proxy = await start()
    [layer] = big.layers
    response = await proxy.client.get(f"/v2/big/blobs/{layer}")
    await response.content.readexactly(1000)
    response.close()
    await proxy.settled()
    await until(lambda: not proxy.app.responses() and proxy.numbers["misses"] == 1)
    assert 1000 <= proxy.numbers["bytes_to_clients"] < 20_000_000
    assert proxy.numbers["bytes_from_upstream"] == 20_000_000


def test_t42_we_give_up_before_clients_do() -> None:
    """Containerd waits for 30 seconds before it tries the next mirror, and then silently."""
    timeouts = Settings().timeouts
    assert timeouts.answer < 30
    assert timeouts.connect < timeouts.answer
    assert timeouts.check < timeouts.answer


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *((path, kind) for path in EVERYTHING for kind in ("registry", "token")),
        *((path, "data") for path in CONTENT),
    ],
)
async def test_t42_whoever_hangs_is_told_in_time(
    start: Start, upstream: FakeUpstream, path: str, kind: str
) -> None:
    if kind == "registry":
        gate = upstream.hold()
    else:
        upstream.auth.scheme = "bearer"
        upstream.behaviour.redirects = {"manifest", "blob"}
        gate = upstream.hold(kind="token" if kind == "token" else "data")
    proxy = await start(timeouts={"answer": "300ms", "idle": "10s"})
    began = time.monotonic()
    answer, head = await asyncio.gather(proxy.get(path), proxy.head(path))
    assert (answer.status, code(answer)) == (504, "UNAVAILABLE")
    assert head.status == 504
    assert time.monotonic() - began < 9
    gate.set()


async def test_t42_nobody_waits_without_end_for_a_place(
    start: Start, upstream: FakeUpstream
) -> None:
    """A slow download may take its time, but those who wait for its place must be told."""
    big = content.image(8, layers=(1_000_000,))
    upstream.add("library/big", big)
    upstream.fault(slow(100_000), reference=big.layers[0])
    proxy = await start(hub={"max_downloads": 1}, timeouts={"answer": "500ms"})
    response = await proxy.client.get(f"/v2/big/blobs/{big.layers[0]}")
    await response.content.readexactly(1)
    async with asyncio.timeout(8):
        answer = await proxy.get(BLOB)
    assert answer.status in {200, 429, 502, 504}
    response.close()
