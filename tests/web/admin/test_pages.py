import json
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import content
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

PRIVATE = content.image(7, layers=(300_000,))


async def test_health_and_readiness(proxy: Proxy) -> None:
    for path in ("/-/healthz", "/-/readyz"):
        answer = await proxy.get(path)
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("application/json")
    proxy.app.admin.is_stopping = True
    assert (await proxy.get("/-/readyz")).status == 503
    assert (await proxy.get("/-/healthz")).status == 200


async def test_nothing_of_ours_can_be_changed(proxy: Proxy) -> None:
    assert (await proxy.ask("POST", "/-/stats")).status == 405


async def test_stats_and_metrics_tell_the_same(proxy: Proxy, upstream: FakeUpstream) -> None:
    image = upstream.add("library/app", content.image(1))
    for _ in range(2):
        await proxy.get("/v2/app/manifests/latest")
    await proxy.get("/v2/app/manifests/none")
    await proxy.get("/v2/example.com/app/manifests/none")
    stats = json.loads((await proxy.get("/-/stats")).body)
    hub = stats["upstreams"]["docker.io"]
    assert (hub["requests"], hub["hits"], hub["misses"]) == (3, 1, 1)
    assert stats["total"]["requests"] == 4
    assert stats["total"]["errors"] == {"MANIFEST_UNKNOWN": 1, "NAME_UNKNOWN": 1}
    assert stats["cache"]["files"] == 1
    assert stats["cache"]["bytes"] == 4096
    assert stats["cache"]["limit_bytes"] == 50 * 1024**3
    assert stats["version"]
    assert stats["uptime_seconds"] >= 0
    families = {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families((await proxy.get("/metrics")).body.decode())
        for sample in family.samples
    }

    def metric(name: str, **labels: str) -> float:
        return families[name + json.dumps(labels, sort_keys=True)]

    assert metric("millpond_requests_total", upstream="docker.io", outcome="hit") == 1
    assert metric("millpond_requests_total", upstream="docker.io", outcome="miss") == 1
    assert metric("millpond_errors_total", upstream="", code="NAME_UNKNOWN") == 1
    assert metric("millpond_cache_bytes") == 4096
    assert metric("millpond_cache_limit_bytes") == 50 * 1024**3
    assert metric("millpond_upstream_requests_total", upstream="docker.io") == 2
    sent = metric("millpond_client_bytes_total", upstream="docker.io")
    assert sent == hub["bytes_to_clients"] >= 2 * len(image.manifest)
    assert metric("process_open_fds") > 0


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer ", "Basic c2VjcmV0"])
async def test_t56_names_of_running_downloads_are_only_for_the_trusted(
    start: Start, upstream: FakeUpstream, tmp_path: Path, authorization: str | None
) -> None:
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=76)
    (tmp_path / "token").write_text("secret\n")
    proxy = await start(admin={"token_file": str(tmp_path / "token")})
    upstream.add("secret-team/secret-product", PRIVATE)
    [layer] = PRIVATE.layers
    release = upstream.stall(100_000, kind="blob")
    try:
        await proxy.get("/v2/secret-team/secret-product/manifests/latest")
        async with proxy.client.get(f"/v2/secret-team/secret-product/blobs/{layer}"):
            await until(lambda: bool(proxy.stats["downloads"]))
            await until(lambda: bool(proxy.stats["downloads"][0]["bytes"]))
            headers = {} if authorization is None else {"Authorization": authorization}
            for page in ("/-/stats", "/metrics", "/-/readyz", "/-/healthz"):
                answer = await proxy.get(page, **headers)
                assert answer.status == 200
                for name in (b"secret", layer.encode(), layer[7:].encode(), b"192.0.2.1"):
                    assert name not in answer.body, page
            public = json.loads((await proxy.get("/-/stats", **headers)).body)
            [download] = public["downloads"]
            assert download["upstream"] == "docker.io"
            assert (download["bytes"] > 0, download["size"]) == (True, 300_000)
            assert public["upstreams"]["docker.io"]["rate_limit"]["remaining"] == 75
            by_token = await proxy.get("/-/stats", Authorization="Bearer secret")
            _sees_names(by_token.body, layer)
            connector = UnixConnector(str(proxy.storage / "admin.sock"))
            async with (
                ClientSession(connector=connector) as operator,
                operator.get("http://millpond/-/stats") as response,
            ):
                _sees_names(await response.read(), layer)
    finally:
        release.set()


def _sees_names(body: bytes, layer: str) -> None:
    document = json.loads(body)
    [download] = document["downloads"]
    assert (download["repository"], download["digest"]) == ("secret-team/secret-product", layer)
    assert document["upstreams"]["docker.io"]["rate_limit"]["source"] == "192.0.2.1"


async def test_a_token_file_that_cannot_be_read_leaves_the_public_statistics(
    start: Start, tmp_path: Path
) -> None:
    proxy = await start(admin={"token_file": str(tmp_path / "none")})
    assert (await proxy.get("/-/stats", Authorization="Bearer x")).status == 200
