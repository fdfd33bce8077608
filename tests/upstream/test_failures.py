"""Why an upstream fails: said in the log once a minute and cause, and shown in the metrics."""

import errno
import io
import itertools
import json
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import ClientConnectorError
from prometheus_client.parser import text_string_to_metric_families

from proxy.core.errors import (
    ContentMismatch,
    Denied,
    RegistryError,
    TooManyRequests,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.runtime import logs
from proxy.upstream import failures
from proxy.upstream.failures import FailureLog
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import redirect
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

IMAGE = content.image(1)
LATEST = "/v2/app/manifests/latest"
LIST = "/v2/app/tags/list"


def events(proxy: Proxy, name: str = "upstream failed") -> list[dict[str, Any]]:
    lines = map(json.loads, proxy.log.getvalue().splitlines())
    return [line for line in lines if line["event"] == name]


async def metrics(proxy: Proxy) -> dict[str, float]:
    page = (await proxy.get("/metrics")).body.decode()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def sample(name: str, **labels: str) -> str:
    return f"{name}{sorted(labels.items())}"


async def test_t66_the_log_says_why_and_what_was_served_instead(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.add("library/app", IMAGE)
    assert (await proxy.get(LATEST)).status == 200
    clock.advance(1e7)
    upstream.fail(503)
    for _ in range(3):
        assert (await proxy.get(LATEST)).status == 200
    upstream.heal()
    upstream.fail(500)
    for _ in range(3):
        assert (await proxy.get("/v2/app/manifests/other")).status == 502
    upstream.heal()
    await upstream.stop()
    for _ in range(3):
        assert (await proxy.get(f"/v2/app/blobs/{IMAGE.layers[0]}")).status == 502
    answered_503, answered_500, unreachable = events(proxy)
    for line in (answered_503, answered_500, unreachable):
        assert (line["level"], line["upstream"]) == ("warning", "docker.io")
        assert line["host"] == "127.0.0.1"
    assert "503" in answered_503["cause"]
    assert answered_503["served"] == "the last good copy"
    assert "500" in answered_500["cause"]
    assert answered_500["served"] == "an error: 502 UNAVAILABLE"
    assert "cannot be reached" in unreachable["cause"]


@pytest.mark.parametrize("status", [429, 503])
async def test_t66_a_check_behind_the_clients_back_is_reported_too(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock, status: int
) -> None:
    upstream.add("library/app", IMAGE)
    await proxy.get(LATEST)
    upstream.fail(status)
    clock.advance(301)
    assert "Warning" not in (await proxy.get(LATEST)).headers
    await until(lambda: len(events(proxy)) == 1)
    assert events(proxy)[0]["served"] == "the copy that is held"


async def test_lists_are_named_as_what_was_served(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    await proxy.get(LIST)
    upstream.fail(503)
    await proxy.get(LIST)
    assert [line["served"] for line in events(proxy)] == ["the last list of tags"]


async def test_t66_a_signed_address_is_never_logged(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    async with FakeUpstream() as cdn:
        gone = cdn.url.replace("127.0.0.1", "localhost")
    upstream.fault(redirect(f"{gone}/data?X-Signature=s3cr3t&token=s3cr3t"), kind="blob")
    assert (await proxy.get(f"/v2/app/blobs/{IMAGE.layers[0]}")).status == 502
    [line] = events(proxy)
    assert line["host"] == "localhost", "the host that failed, not the registry's"
    assert "s3cr3t" not in proxy.log.getvalue()


async def test_absence_and_refusal_are_no_failures(proxy: Proxy, upstream: FakeUpstream) -> None:
    assert (await proxy.get(LATEST)).status == 404
    upstream.fail(403)
    assert (await proxy.get("/v2/app/manifests/other")).status == 403
    assert not events(proxy)


async def test_t66_left_alone_and_back_again_are_said_once_each(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(patience={"retries": 0, "failures": 2, "pause": "100ms"})
    upstream.add("library/app", IMAGE)
    await upstream.stop()
    deadline = time.monotonic() + 20
    for number in itertools.count():
        assert (await proxy.get(f"/v2/app/manifests/v{number}")).status == 502
        if proxy.numbers["upstream_requests"] >= 5:
            break  # it was probed again and again
        assert time.monotonic() < deadline
    [alone] = events(proxy, "circuit opened")
    assert (alone["level"], alone["upstream"], alone["failures"]) == ("warning", "docker.io", 2)
    assert "cannot be reached" in alone["cause"]
    assert (await metrics(proxy))[sample("millpond_upstream_up", upstream="docker.io")] == 0
    state = sample("millpond_upstream_circuit_state", upstream="docker.io")
    assert (await metrics(proxy))[state] in {1, 2}
    assert proxy.numbers["circuit"] in {"open", "probing"}
    await upstream.start()
    deadline = time.monotonic() + 20
    while (await proxy.get(LATEST)).status != 200:
        assert time.monotonic() < deadline
    [back] = events(proxy, "circuit closed")
    assert back["upstream"] == "docker.io"
    assert back["open_seconds"] > 0
    assert len(events(proxy, "circuit opened")) == 1
    assert (await metrics(proxy))[sample("millpond_upstream_up", upstream="docker.io")] == 1
    assert (await metrics(proxy))[state] == 0


async def test_the_metrics_show_the_state_and_the_times_of_an_upstream(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    last = sample("millpond_upstream_last_success_timestamp_seconds", upstream="docker.io")
    assert last not in await metrics(proxy)
    assert proxy.numbers["last_success"] is None
    began = time.time()
    await proxy.get(LATEST)
    await proxy.get(LATEST)
    layer = f"/v2/app/blobs/{IMAGE.layers[0]}"
    await proxy.get(layer)
    upstream.fail(503)
    await proxy.get("/v2/app/manifests/other")
    found = await metrics(proxy)
    assert began - 1 <= found[last] <= time.time() + 1
    assert (proxy.numbers["up"], proxy.numbers["circuit"]) == (False, "closed")
    for name in ("millpond_request_duration_seconds", "millpond_time_to_first_byte_seconds"):
        for outcome, count in {"hit": 1, "miss": 2, "error": 1}.items():
            labels = {"upstream": "docker.io", "outcome": outcome}
            assert found[sample(f"{name}_count", **labels)] == count
            assert found[sample(f"{name}_bucket", le="+Inf", **labels)] == count
            assert 0 < found[sample(f"{name}_sum", **labels)] < 10 * count
    assert sample(f"{name}_count", upstream="docker.io", outcome="left") not in found
    answers = "millpond_upstream_response_seconds_count"
    assert found[sample(answers, upstream="docker.io", status="2xx")] == 2
    assert found[sample(answers, upstream="docker.io", status="5xx")] == 1
    await upstream.stop()
    await proxy.get("/v2/app/manifests/another")
    found = await metrics(proxy)
    assert found[sample(answers, upstream="docker.io", status="none")] == 1


async def test_the_first_byte_comes_before_the_last(proxy: Proxy, upstream: FakeUpstream) -> None:
    large = content.image(5, layers=(500_000,))
    upstream.add("library/large", large)
    release = upstream.stall(100_000, kind="blob")
    async with proxy.client.get(f"/v2/large/blobs/{large.layers[0]}") as response:
        assert await response.content.readexactly(1000)
        began = time.monotonic()
        while time.monotonic() - began < 0.3:
            await proxy.get("/v2/")
        release.set()
        await response.read()
    found = await metrics(proxy)
    labels = {"upstream": "docker.io", "outcome": "miss"}
    first = found[sample("millpond_time_to_first_byte_seconds_sum", **labels)]
    whole = found[sample("millpond_request_duration_seconds_sum", **labels)]
    assert whole - first >= 0.3


class TestFailureLog:
    @pytest.fixture
    def log(self) -> io.StringIO:
        stream = io.StringIO()
        logs.configure("info", "json", stream)
        return stream

    @staticmethod
    def lines(log: io.StringIO) -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.getvalue().splitlines()]

    def test_t66_one_line_a_minute_for_each_cause(self, log: io.StringIO, clock: Clock) -> None:
        reports = FailureLog("lab", "lab.example", clock)
        for _ in range(3):
            for error in (UpstreamTimeout("slow"), answer(503), answer(500)):
                reports.report(error, "nothing")
            clock.advance(19)
        assert [line["suppressed"] for line in self.lines(log)] == [0, 0, 0]
        clock.advance(4)
        reports.report(UpstreamTimeout("slow"), "nothing")
        clock.advance(59)
        reports.report(UpstreamTimeout("slow"), "nothing")
        assert [line["suppressed"] for line in self.lines(log)] == [0, 0, 0, 2]
        clock.advance(1)
        reports.report(UpstreamTimeout("slow"), "nothing")
        assert [line["suppressed"] for line in self.lines(log)] == [0, 0, 0, 2, 1]
        assert {line["host"] for line in self.lines(log)} == {"lab.example"}

    def test_what_was_asked_for_makes_no_new_cause(self, log: io.StringIO, clock: Clock) -> None:
        reports = FailureLog("lab", "lab.example", clock)
        for number in range(50):
            reports.report(ContentMismatch(f"what came is not {number}"), "nothing")
        assert len(self.lines(log)) == 1

    def test_causes_are_bounded(self, log: io.StringIO, clock: Clock) -> None:
        reports = FailureLog("lab", "lab.example", clock)
        for number in range(1000):
            error = UpstreamUnavailable("away")
            error.host = f"cdn{number}"
            reports.report(error, "nothing")
        assert len(reports._logged) <= failures.MAX_CAUSES
        assert len(self.lines(log)) == failures.MAX_LINES
        clock.advance(60)
        reports.report(UpstreamTimeout("slow"), "nothing")
        assert self.lines(log)[-1]["suppressed"] == 1000 - failures.MAX_LINES
        reports.report(answer(503), "nothing")
        assert self.lines(log)[-1]["suppressed"] == 0
        for number in range(1000):
            error = UpstreamUnavailable("away again")
            error.host = f"cdn{number}"
            reports.report(error, "nothing")
        assert len(self.lines(log)) == 2 * failures.MAX_LINES

    def test_another_reason_is_another_cause(self, log: io.StringIO, clock: Clock) -> None:
        reports = FailureLog("lab", "lab.example", clock)
        key = SimpleNamespace(host="lab.example", port=443, ssl=True, is_ssl=True)
        refused, unreachable = OSError(errno.ECONNREFUSED, "no"), OSError(errno.EHOSTUNREACH, "no")
        reasons = (
            *(None, ValueError("x"), TypeError("x"), refused, unreachable),
            *(ClientConnectorError(cast("Any", key), reason) for reason in (refused, unreachable)),
        )
        for _ in range(2):
            for reason in reasons:
                error = UpstreamUnavailable("lab cannot be reached")
                error.__cause__ = reason
                reports.report(error, "nothing")
        assert len(self.lines(log)) == len(reasons)

    @pytest.mark.parametrize("error", [Denied("no"), RegistryError("bug")])
    def test_only_failures_are_logged(
        self, log: io.StringIO, clock: Clock, error: RegistryError
    ) -> None:
        FailureLog("lab", "lab.example", clock).report(error, "nothing")
        assert not self.lines(log)

    def test_what_was_not_asked_is_not_logged(self, log: io.StringIO, clock: Clock) -> None:
        error = TooManyRequests("not asked again yet")
        error.was_forwarded = False
        FailureLog("lab", "lab.example", clock).report(error, "nothing")
        assert not self.lines(log)


def answer(status: int) -> UpstreamUnavailable:
    error = UpstreamUnavailable(f"lab answers {status}", is_answer=True)
    error.upstream_status = status
    return error
