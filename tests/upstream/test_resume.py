"""Bodies that break off are resumed, and downloads wait for each other."""

import asyncio

import pytest
from aiohttp import ClientPayloadError

from tests.fakes import content
from tests.fakes.faults import chunked, corrupt, no_ranges, slow, truncate
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

BIG = content.image(3, layers=(3_000_000,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
PATH = f"/v2/app/blobs/{LAYER}"
SLOWLY = slow(10_000_000)  # bytes a second: what has come is read before the end does


@pytest.fixture
async def patient(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", BIG)
    return await start(patience={})


@pytest.fixture
async def hasty(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", BIG)
    return await start(patience={}, timeouts={"idle": "1s"})


@pytest.mark.parametrize("redirected", [True, False])
async def test_a_body_that_breaks_goes_on_from_the_last_good_byte(
    patient: Proxy, upstream: FakeUpstream, *, redirected: bool
) -> None:
    kind = "data" if redirected else "blob"
    upstream.behaviour.redirects = {"blob"} if redirected else set()
    upstream.behaviour.signature_ttl = 60
    upstream.fault(SLOWLY, truncate(1_000_000), kind=kind, times=1)
    upstream.fault(SLOWLY, truncate(500_000, reset=True), kind=kind, times=1, after=1)
    assert (await patient.get(PATH)).body == DATA
    asked = upstream.cdn_requests if redirected else upstream.requests
    ranges = [request.headers.get("Range") for request in asked if request.method == "GET"]
    assert ranges[0] is None
    assert len(ranges) == 3
    offsets = [int(text.removeprefix("bytes=").rstrip("-")) for text in ranges[1:] if text]
    assert 0 < offsets[0] <= 1_000_000 < offsets[1] <= 1_500_000
    await patient.settled()
    assert patient.held() == {LAYER}
    assert upstream.count("GET", "blob") == 3, "each time through a fresh redirect"


async def test_a_stalled_body_is_noticed_and_resumed(hasty: Proxy, upstream: FakeUpstream) -> None:
    upstream.stall(1_000_000, kind="blob", times=1)
    assert (await hasty.get(PATH)).body == DATA
    assert upstream.count("GET", "blob") == 2


async def test_a_whole_answer_instead_of_the_rest(patient: Proxy, upstream: FakeUpstream) -> None:
    upstream.fault(truncate(1_000_000), kind="blob", times=1)
    upstream.fault(no_ranges(), kind="blob")
    assert (await patient.get(PATH)).body == DATA


async def test_an_expired_token_is_renewed_for_the_rest(
    hasty: Proxy, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    release = upstream.stall(1_000_000, kind="blob", times=1)
    asked = asyncio.create_task(hasty.get(PATH))
    await upstream.until(lambda: upstream.count("GET", "blob") >= 2)
    upstream.revoke_tokens()
    assert (await asked).body == DATA
    release.set()
    assert len(upstream.token_requests) == 2


async def test_a_body_without_length_is_resumed_too(patient: Proxy, upstream: FakeUpstream) -> None:
    upstream.fault(chunked(), truncate(1_000_000), kind="blob", times=1)
    assert (await patient.get(PATH)).body == DATA


async def test_what_is_resumed_is_proven_as_a_whole(patient: Proxy, upstream: FakeUpstream) -> None:
    upstream.fault(SLOWLY, truncate(1_000_000), corrupt(10), kind="blob", times=1)
    with pytest.raises(ClientPayloadError):
        await patient.get(PATH)
    await patient.settled()
    assert not patient.held()


async def test_an_upstream_that_never_gets_further_is_given_up(
    patient: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fault(truncate(0), kind="blob")
    with pytest.raises(ClientPayloadError):
        await patient.get(PATH)
    assert upstream.count("GET", "blob") == 5
    await patient.settled()
    assert not patient.spooled()


async def test_t39_downloads_wait_for_each_other_and_manifests_do_not(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(hub={"max_downloads": 2})
    image = upstream.add("library/many", content.image(7, layers=(1000, 2000, 3000, 4000)))
    gate = upstream.hold(kind="blob")
    asked = [asyncio.create_task(proxy.get(f"/v2/many/blobs/{d}")) for d in image.blobs]
    await upstream.until(lambda: upstream.count("GET", "blob") == 2)
    assert (await proxy.get("/v2/many/manifests/latest")).status == 200
    assert upstream.count("GET", "blob") == 2
    gate.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * len(asked)
