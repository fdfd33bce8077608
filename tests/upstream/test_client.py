"""The meaning of each status, and which requests are repeated, aborted, or not sent."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.core.errors import (
    Denied,
    ManifestUnknown,
    RegistryError,
    TooManyRequests,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.core.names import Repo
from proxy.upstream.circuit_breaker import CircuitState
from proxy.upstream.client import MAX_MESSAGE, Client, UpstreamRequest
from tests.fakes import content
from tests.fakes.faults import gzipped, hang_up, header, status
from tests.fakes.records import Record
from tests.fakes.replies import Reply
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start
from tests.upstream import wiring

BIG = content.image(3, layers=(3_000_000,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
PATH = f"/v2/app/blobs/{LAYER}"
LATEST = "/v2/app/manifests/latest"


@pytest.fixture
async def patient(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", BIG)
    return await start(patience={}, timeouts={"answer": "30s"})


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
    assert time.monotonic() - began < 30, "that is too long, so the client learns of it at once"


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


APP = UpstreamRequest("GET", Repo("library/app"), "manifests", "latest", ManifestUnknown)


@pytest.fixture
async def client(upstream: FakeUpstream) -> AsyncIterator[Client]:
    upstream.add("library/app", BIG)
    transport = wiring.transport(upstream.url, idle="5s")
    yield wiring.client(transport, retries=2, failures=2, pause="60s")
    await transport.close()


async def sent(client: Client, request: UpstreamRequest) -> int | RegistryError:
    """The status of the response, or the error."""
    try:
        response = await client.send(request)
    except RegistryError as error:
        return error
    response.close()
    return response.status


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (200, 200), (206, 206), (203, UpstreamUnavailable), (305, UpstreamUnavailable),
        (400, UpstreamRejected), (403, Denied), (404, ManifestUnknown), (405, UpstreamRejected),
        (408, UpstreamUnavailable), (410, UpstreamRejected), (429, TooManyRequests),
        (499, UpstreamRejected), (500, UpstreamUnavailable), (501, UpstreamUnavailable),
    ],
)  # fmt: skip
async def test_what_each_status_means(
    client: Client, upstream: FakeUpstream, code: int, expected: int | type[RegistryError]
) -> None:
    upstream.fail(code, retry_after=30)
    result = await sent(client, APP)
    if isinstance(expected, int):
        assert result == expected
        return
    assert isinstance(result, RegistryError)
    assert type(result) is expected
    assert (result.upstream_status, result.host, result.was_forwarded) == (code, "127.0.0.1", True)
    limited = expected in (TooManyRequests, UpstreamUnavailable)
    assert result.retry_after == (30 if limited else None)
    assert getattr(result, "is_answer", False) == (expected is UpstreamUnavailable)
    assert f"lab answers {code}" in result.message


@pytest.mark.parametrize("code", [405, 501])
async def test_a_registry_without_head_says_so(
    client: Client, upstream: FakeUpstream, code: int
) -> None:
    upstream.fail(code)
    assert await sent(client, replace(APP, method="HEAD")) == code


@pytest.mark.parametrize("code", [401, 403])
async def test_a_refusal_from_elsewhere_is_a_failure(
    client: Client, upstream: FakeUpstream, code: int
) -> None:
    """A signed URL that has expired, for example: another try gets a fresh one."""
    upstream.behaviour.redirects = {"blob"}
    upstream.fail(code, kind="data", times=1)
    blob = replace(APP, kind="blobs", ref=LAYER)
    assert await sent(client, blob) == 200
    upstream.fail(code, kind="data")
    assert isinstance(await sent(client, blob), UpstreamUnavailable)


async def test_an_encoded_response_is_rejected(client: Client, upstream: FakeUpstream) -> None:
    upstream.fault(gzipped())
    assert isinstance(await sent(client, APP), UpstreamRejected)
    upstream.heal()
    upstream.fault(header("Content-Encoding", "identity"))
    assert await sent(client, APP) == 200


@pytest.mark.parametrize(("excess", "is_whole"), [(0, True), (-1, False)])
async def test_a_body_is_read_up_to_a_limit(client: Client, excess: int, is_whole: bool) -> None:
    response, body = await client.read(APP, len(BIG.manifest) + excess)
    assert response.status == 200
    assert body == (BIG.manifest if is_whole else None)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no\x00 \u200bentry", ": no entry"),
        ("x" * 300, ": " + "x" * 200),
        ("x" * MAX_MESSAGE, ": " + "x" * 200),
        ("x" * (MAX_MESSAGE + 1), ""),
        ("", ""),
        (5, ""),
    ],
)
async def test_the_message_of_a_registry_is_shown_in_part(
    client: Client, upstream: FakeUpstream, message: object, shown: str
) -> None:
    body = json.dumps({"errors": [{"message": message}]}).encode()
    upstream.fault(status(400, body=body))
    result = await sent(client, APP)
    assert isinstance(result, UpstreamRejected)
    assert result.message == f"lab answers 400{shown}"
    assert result.args == (result.message,)


@pytest.mark.parametrize("body", [b"", b"no JSON", b"{}", b'{"errors":[]}', b'{"errors":["x"]}'])
async def test_an_error_without_a_message(
    client: Client, upstream: FakeUpstream, body: bytes
) -> None:
    upstream.fault(status(400, body=body))
    result = await sent(client, APP)
    assert isinstance(result, UpstreamRejected)
    assert result.message == "lab answers 400"


async def test_an_optional_request_is_sent_once_and_counts_nothing(
    client: Client, upstream: FakeUpstream
) -> None:
    upstream.fail(503)
    for number in range(3):
        optional = replace(APP, ref=f"v{number}", is_optional=True)
        assert isinstance(await sent(client, optional), UpstreamUnavailable)
    assert len(upstream.requests) == 3
    assert client.circuit_breaker.is_up
    upstream.heal()
    upstream.fail(429, retry_after=60, times=1)
    optional = replace(APP, is_optional=True)
    assert isinstance(await sent(client, optional), TooManyRequests)
    assert isinstance(await sent(client, optional), TooManyRequests)
    assert len(upstream.requests) == 4, "optional requests cool down"
    assert await sent(client, APP) == 200, "others do not"


async def test_an_answer_that_takes_too_long_counts_as_a_failure(upstream: FakeUpstream) -> None:
    upstream.hold()
    transport = wiring.transport(upstream.url)
    client = wiring.client(transport, answer=1.0, failures=1, pause="60s")
    assert isinstance(await sent(client, APP), UpstreamTimeout)
    assert client.circuit_breaker.state is CircuitState.OPEN
    refused = await sent(client, APP)
    assert isinstance(refused, UpstreamUnavailable)
    assert not refused.was_forwarded
    assert len(upstream.requests) == 1
    await transport.close()


async def test_an_error_repeats_no_credentials(client: Client, upstream: FakeUpstream) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.users = {"alice": "wonderland"}
    upstream.auth.anonymous = False

    def echo(record: Record, reply: Reply) -> Reply:
        sent = record.headers.get("Authorization", "")
        text = json.dumps({"errors": [{"message": f"sent {sent}, {{wonderland}}"}]})
        return replace(reply, status=400, body=text.encode()) if sent else reply

    upstream.fault(echo)
    result = await sent(client, APP)
    assert isinstance(result, UpstreamRejected)
    assert result.message == "lab answers 400: sent [redacted], {[redacted]}"
