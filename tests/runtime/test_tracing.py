"""Spans of requests, of requests to upstream, and of downloads, at a collector."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.app import tracing
from proxy.core.errors import ConfigError
from proxy.settings import Tracing
from tests.fakes import content
from tests.fakes.collector import Collector, Span, collecting
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

IMAGE = content.image(1, layers=(300_000,))
[LAYER] = IMAGE.layers
MANIFEST = "/v2/library/app/manifests/latest"
BLOB = f"/v2/library/app/blobs/{LAYER}"
TRACE, ABOVE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{ABOVE}-01"
NOT_SAMPLED = f"00-{TRACE}-{ABOVE}-00"
SERVER, CLIENT = 2, 3
ERROR = 2


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


async def sent(collector: Collector, proxy: Proxy) -> list[Span]:
    """Return all spans: closing sends the last ones."""
    await proxy.close()
    return collector.spans


async def begun(start: Start, collector: Collector, **more: Any) -> Proxy:
    return await start(tracing={"endpoint": collector.url, "sample_ratio": 1.0, **more})


async def test_a_miss_is_one_trace_down_to_the_registry(
    start: Start, upstream: FakeUpstream, collector: Collector
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await begun(start, collector, service="cache-1")
    answer = await proxy.get(BLOB, traceparent=PARENT, User_Agent="pull/1")
    await proxy.settled()
    spans = await sent(collector, proxy)
    [request] = [span for span in spans if span.kind == SERVER]
    assert (request.name, request.trace, request.above) == ("GET /v2/blobs", TRACE, ABOVE)
    about = request.attributes
    assert about["http.response.status_code"] == 200
    assert about["http.response.body.size"] == 300_000
    assert about["url.path"] == BLOB
    assert about["user_agent.original"] == "pull/1"
    assert about["millpond.outcome"] == "miss"
    assert (about["millpond.upstream"], about["millpond.repository"]) == (
        "docker.io",
        "library/app",
    )
    assert about["millpond.request_id"] == answer.headers["X-Request-Id"]
    [download] = collector.named("download")
    assert (download.trace, download.above) == (TRACE, request.id)
    assert download.attributes == {"millpond.digest": LAYER, "millpond.bytes": 300_000}
    asked = [span for span in spans if span.kind == CLIENT]
    assert {span.trace for span in asked} == {TRACE}
    [body] = [span for span in asked if str(span.attributes["url.full"]).endswith(LAYER)]
    assert body.above == download.id
    assert body.attributes["http.response.status_code"] == 200
    assert collector.resource["service.name"] == "cache-1"
    assert "traceparent" not in upstream.requests[-1].headers


async def test_a_failure_marks_its_spans(
    start: Start, upstream: FakeUpstream, collector: Collector
) -> None:
    upstream.fail(status=500, kind="manifest")
    proxy = await begun(start, collector)
    assert (await proxy.get(MANIFEST)).status == 502
    spans = await sent(collector, proxy)
    [request] = [span for span in spans if span.kind == SERVER]
    assert (request.status, request.attributes["error.type"]) == (ERROR, "UNAVAILABLE")
    assert [
        span.attributes["http.response.status_code"] for span in spans if span.kind == CLIENT
    ] == [500] * sum(span.kind == CLIENT for span in spans)


async def test_a_client_decides_for_itself_whether_it_is_traced(
    start: Start, upstream: FakeUpstream, collector: Collector
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await begun(start, collector, sample_ratio=0.0)
    for headers in ({}, {"traceparent": NOT_SAMPLED}, {"traceparent": "nonsense"}):
        assert (await proxy.get(MANIFEST, **headers)).status == 200
    for _ in range(4):  # the response cache would answer a request that it knows
        assert (await proxy.get(MANIFEST, traceparent=PARENT)).status == 200
    spans = await sent(collector, proxy)
    requests = [span.trace for span in spans if span.kind == SERVER]
    assert requests[:2] == [TRACE] * 2
    assert set(requests) == {TRACE}


async def test_a_registry_gets_the_trace_only_if_that_is_configured(
    start: Start, upstream: FakeUpstream, collector: Collector
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await begun(start, collector, propagate=True)
    await proxy.get(MANIFEST, traceparent=PARENT)
    spans = await sent(collector, proxy)
    passed_on = [one.headers["traceparent"] for one in upstream.requests]
    assert passed_on
    clients = {f"00-{TRACE}-{span.id}-01" for span in spans if span.kind == CLIENT}
    assert set(passed_on) <= clients


async def test_the_collector_gets_the_headers_of_a_file(
    start: Start, upstream: FakeUpstream, collector: Collector, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer s3cret\n\nX-Team: infra\n")
    proxy = await begun(start, collector, headers_file=str(file))
    await proxy.get("/v2/")
    await sent(collector, proxy)
    assert collector.headers[0]["Authorization"] == "Bearer s3cret"
    assert collector.headers[0]["X-Team"] == "infra"
    assert "s3cret" not in proxy.log.getvalue()


async def test_a_collector_that_is_away_delays_nothing(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start(tracing={"endpoint": "http://127.0.0.1:9/v1/traces", "sample_ratio": 1.0})
    for _ in range(20):
        assert (await proxy.get(MANIFEST)).status == 200


@pytest.mark.parametrize(
    ("settings", "text", "problem"),
    [
        ({}, "A: b", "set tracing.endpoint too"),
        ({"endpoint": "http://c:4318"}, "no header", "line 1: write a header"),
        ({"endpoint": "http://c:4318"}, None, "cannot be read: No such file"),
    ],
)
def test_what_does_not_work_is_refused(
    settings: dict[str, Any], text: str | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    if text is not None:
        file.write_text(text)
    found = [*tracing.problems(Tracing.model_validate(settings | {"headers_file": file}))]
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize("url", ["collector:4318", "ftp://c/", "http://", "http://a:b@c:4318/"])
def test_the_address_of_a_collector_is_checked(url: str) -> None:
    with pytest.raises(ValueError, match="not the address of a collector"):
        Tracing(endpoint=url)


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        dict(tracing._headers(tmp_path))
