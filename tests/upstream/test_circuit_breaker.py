"""Retries, resumption, cool-down and circuit, first as pure state and then through sockets."""

import asyncio
import time

import pytest
from aiohttp import ClientPayloadError

from proxy.core.errors import (
    BlobUnknown,
    RegistryError,
    TooManyRequests,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.upstream.circuit_breaker import MAX_COOL_DOWN, Limits, Patience
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import chunked, corrupt, hang_up, no_ranges, slow, truncate
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

BIG = content.image(3, layers=(3_000_000,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
PATH = f"/v2/app/blobs/{LAYER}"
LATEST = "/v2/app/manifests/latest"
DOWN = UpstreamUnavailable("down")
SLOWLY = slow(10_000_000)  # bytes a second: what has come is read before the end does
ITEM, OTHER = "library/app manifests latest", "library/other manifests latest"
PULL, CHECK = "GET manifests", "HEAD manifests"


@pytest.fixture
def patience(clock: Clock) -> Patience:
    return Patience("hub", Limits(retries=2, failures=3, pause=5, cool_down=30), clock)


def refusal(patience: Patience, kind: str = PULL, item: str = ITEM) -> RegistryError | None:
    try:
        patience.admit(kind, item)
    except RegistryError as error:
        return error
    return None


def test_a_rate_limit_cools_down_what_was_limited(patience: Patience, clock: Clock) -> None:
    patience.failed(PULL, ITEM, TooManyRequests("slow down", retry_after=17))
    clock.advance(7)
    limited = refusal(patience)
    assert isinstance(limited, TooManyRequests)
    assert limited.retry_after == pytest.approx(10)
    assert refusal(patience, CHECK) is None
    clock.advance(10)
    assert refusal(patience) is None


def test_a_rate_limit_without_an_end_has_ours(patience: Patience, clock: Clock) -> None:
    patience.failed(PULL, ITEM, TooManyRequests("slow down"))
    clock.advance(29)
    assert refusal(patience)
    clock.advance(1)
    assert refusal(patience) is None


def test_an_endless_rate_limit_is_probed(patience: Patience, clock: Clock) -> None:
    patience.failed(PULL, ITEM, TooManyRequests("slow down", retry_after=86400))
    clock.advance(MAX_COOL_DOWN)
    assert refusal(patience) is None


def test_failures_in_a_row_open_the_circuit_and_one_probe_closes_it(
    patience: Patience, clock: Clock
) -> None:
    for _ in range(3):
        assert refusal(patience) is None
        patience.failed(PULL, ITEM, DOWN)
    assert patience.is_open
    assert isinstance(refusal(patience, CHECK), UpstreamUnavailable)
    clock.advance(5)
    assert refusal(patience) is None, "the probe"
    assert refusal(patience), "the others wait for it"
    patience.failed(PULL, ITEM, UpstreamTimeout("still"))
    clock.advance(9.9)
    assert refusal(patience), "the pause has doubled"
    clock.advance(0.2)
    assert refusal(patience) is None
    patience.answered(ITEM)
    assert refusal(patience) is None
    assert not patience.is_open


@pytest.mark.parametrize("answer", [BlobUnknown("no"), None])
def test_any_answer_ends_a_row_of_failures(
    patience: Patience, answer: RegistryError | None
) -> None:
    for _ in range(10):
        patience.failed(PULL, ITEM, DOWN)
        patience.failed(PULL, ITEM, DOWN)
        if answer is None:
            patience.answered(ITEM)
        else:
            patience.failed(PULL, ITEM, answer)
    assert refusal(patience) is None


def test_only_passing_failures_are_tried_again(patience: Patience) -> None:
    waits = [patience.wait_before(attempt, DOWN) for attempt in (1, 2, 3)]
    assert waits[0] is not None
    assert waits[1] is not None
    assert 0.1 <= waits[0] <= 0.3
    assert 0.2 <= waits[1] <= 0.6
    assert waits[2] is None
    assert patience.wait_before(1, UpstreamUnavailable("x", retry_after=3)) == 3
    assert patience.wait_before(1, BlobUnknown("x")) is None
    assert patience.wait_before(1, UpstreamTimeout("x"))


def test_one_object_that_fails_does_not_take_the_upstream_away(
    patience: Patience, clock: Clock
) -> None:
    broken = UpstreamUnavailable("500", is_answer=True)
    for _ in range(5):
        patience.failed(PULL, ITEM, broken)
    assert refusal(patience)
    assert refusal(patience, item=OTHER) is None
    for number in range(2):
        patience.failed(PULL, f"another {number}", broken)
    assert patience.is_open, "many objects that fail are an upstream that fails"
    clock.advance(5)
    patience.answered(OTHER)
    assert refusal(patience, item=OTHER) is None


def test_what_upstream_rejects_is_no_failure_of_its(patience: Patience) -> None:
    for _ in range(10):
        patience.failed(PULL, ITEM, UpstreamRejected("400"))
    assert refusal(patience) is None
    assert patience.wait_before(1, UpstreamRejected("400")) is None


@pytest.fixture
async def patient(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", BIG)
    return await start(patience={}, timeouts={"idle": "300ms", "answer": "3s"})


async def test_a_passing_failure_before_the_first_byte_is_not_noticed(
    patient: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fail(503, times=2)
    assert (await patient.get(LATEST)).status == 200
    assert upstream.count("GET", "manifest") == 3
    upstream.fault(hang_up(), kind="blob", times=2)
    assert (await patient.get(PATH)).body == DATA


async def test_a_retry_waits_as_long_as_upstream_says(
    patient: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fail(503, retry_after=1, times=1)
    began = time.monotonic()
    assert (await patient.get(LATEST)).status == 200
    assert time.monotonic() - began >= 1
    upstream.fail(503, retry_after=60, times=1)
    began = time.monotonic()
    answer = await patient.get("/v2/app/manifests/other")
    assert (answer.status, answer.headers["Retry-After"]) == (502, "60")
    assert time.monotonic() - began < 1


async def test_five_immediate_retries_of_a_client_cost_upstream_nothing(
    patient: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fail(429, retry_after=60)
    for _ in range(6):
        answer = await patient.get(LATEST)
        assert (answer.status, 50 < int(answer.headers["Retry-After"]) <= 60) == (429, True)
    assert upstream.count("GET") == 1


async def test_an_upstream_that_fails_again_and_again_is_left_alone(
    patient: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fail(503)
    for _ in range(10):
        assert (await patient.get(LATEST)).status == 502
    assert upstream.count("GET") == 5 * 3, "five requests, each tried three times"


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


async def test_a_stalled_body_is_noticed_and_resumed(
    patient: Proxy, upstream: FakeUpstream
) -> None:
    upstream.stall(1_000_000, kind="blob", times=1)
    assert (await patient.get(PATH)).body == DATA
    assert upstream.count("GET", "blob") == 2


async def test_a_whole_answer_instead_of_the_rest(patient: Proxy, upstream: FakeUpstream) -> None:
    upstream.fault(truncate(1_000_000), kind="blob", times=1)
    upstream.fault(no_ranges(), kind="blob")
    assert (await patient.get(PATH)).body == DATA


async def test_an_expired_token_is_renewed_for_the_rest(
    patient: Proxy, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    release = upstream.stall(1_000_000, kind="blob", times=1)
    asked = asyncio.create_task(patient.get(PATH))
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
