"""Requests that are repeated, given up, or not sent, through real sockets."""

import time

import pytest

from tests.fakes import content
from tests.fakes.faults import hang_up
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

BIG = content.image(3, layers=(3_000_000,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
PATH = f"/v2/app/blobs/{LAYER}"
LATEST = "/v2/app/manifests/latest"


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
