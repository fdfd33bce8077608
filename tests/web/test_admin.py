import json

from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy


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
