"""Metrics: one declaration gives the field, the exposed family, and its place in the statistics."""

from dataclasses import fields

from prometheus_client import generate_latest

from proxy.runtime.metrics import CacheCounters, Metrics, Outcome
from proxy.runtime.part_counters import WorkerCounters
from proxy.runtime.prometheus_view import Gauge, registry
from tests.running import Proxy

TYPES = {
    "requests": "counter",
    "errors": "counter",
    "client_bytes": "counter",
    "upstream_bytes": "counter",
    "upstream_requests": "counter",
    "upstream_token_requests": "counter",
    "manifest_pulls": "counter",
    "upstream_pulls": "counter",
    "time_to_first_byte_seconds": "histogram",
    "request_duration_seconds": "histogram",
    "upstream_response_seconds": "histogram",
    "evictions": "counter",
    "evicted_bytes": "counter",
    "confirmations": "counter",
    "content_mismatches": "counter",
    "corrupted": "counter",
    "repaired": "counter",
    "verified_blobs": "counter",
    "verified_bytes": "counter",
    "storage_errors": "counter",
    "prefetched_blobs": "counter",
    "prefetched_bytes": "counter",
    "prefetched_used_blobs": "counter",
    "prefetched_used_bytes": "counter",
    "prepared_answers": "counter",
    "refused_connections": "counter",
    "stalled_clients": "counter",
    "unlogged_requests": "counter",
    "access_decisions": "counter",
    "audit_failures": "counter",
    "audit_lost_lines": "counter",
    "worker_requests": "counter",
    "worker_client_bytes": "counter",
    "worker_relayed": "counter",
    "worker_cpu_seconds": "counter",
    "worker_memory_bytes": "gauge",
    "limit_delays": "counter",
    "limit_refusals": "counter",
    "limit_wait_seconds": "counter",
    "background_failures": "counter",
    "background_up": "gauge",
    "notification_failures": "counter",
    "notifications_delivered": "counter",
    "notifications_disabled": "gauge",
    "notifications_dropped": "counter",
    "notifications_queued": "gauge",
    "policy_decisions": "counter",
    "warmed_images": "counter",
    "warm_failures": "counter",
    "watch_checks": "counter",
    "hook_checks": "counter",
    "hook_deliveries": "counter",
    "bucket_requests": "counter",
    "bucket_read_bytes": "counter",
    "bucket_uploads": "counter",
    "bucket_uploaded_bytes": "counter",
    "bucket_failures": "counter",
    "bucket_evictions": "counter",
    "bucket_evicted_bytes": "counter",
    "source_requests": "counter",
    "source_bytes": "counter",
    "fleet_redis_commands": "counter",
    "fleet_redis_failures": "counter",
    "fleet_redis_skipped": "counter",
    "fleet_redis_wait_seconds": "counter",
    "fleet_received_bytes": "counter",
    "fleet_sent_bytes": "counter",
    "fleet_peer_failures": "counter",
    "loop_lag_seconds": "gauge",
    "build_info": "gauge",
    "cache_bytes": "gauge",
}
"""What dashboards and alerts rely on; a rename breaks them."""


def exposed(metrics: Metrics) -> list[str]:
    gauges = [Gauge("cache_bytes", "Disk bytes in use.", 3)]
    return generate_latest(registry(metrics, lambda: gauges, "1")).decode().splitlines()


def test_names_and_types_stay() -> None:
    metrics, found = Metrics([]), {}
    assert not any("worker" in line for line in exposed(metrics))
    metrics.workers["1"] = WorkerCounters()
    for line in exposed(metrics):
        if line.startswith("# TYPE millpond_"):
            _, _, name, kind = line.split()
            found[name.removeprefix("millpond_").removesuffix("_total")] = kind
    assert found == TYPES


def test_every_counter_is_exposed_with_its_value() -> None:
    metrics = Metrics([])
    for value, field in enumerate(fields(CacheCounters), 1):
        setattr(metrics.cache, field.name, value)
    shown = metrics.cache.snapshot()
    assert len(set(shown.values())) == len(shown)
    lines = exposed(metrics)
    for name, value in shown.items():
        assert f"millpond_{name}_total {float(value)}" in lines
    for value in range(1, len(fields(CacheCounters)) + 1):
        assert [line for line in lines if line.endswith(f"_total {float(value)}")]


def test_labels_and_empty_histograms() -> None:
    metrics = Metrics(["docker.io"])
    counters = metrics.of("docker.io")
    counters.answered(Outcome.HIT, 10, manifest=True)
    counters.timed(Outcome.HIT, 0.1, 0.2)
    counters.errors["UNKNOWN"] += 1
    lines = exposed(metrics)
    hit = '{outcome="hit",upstream="docker.io"}'
    assert f"millpond_requests_total{hit} 1.0" in lines
    assert f"millpond_time_to_first_byte_seconds_sum{hit} 0.1" in lines
    assert f"millpond_request_duration_seconds_sum{hit} 0.2" in lines
    assert 'millpond_errors_total{code="UNKNOWN",upstream="docker.io"} 1.0' in lines
    assert 'millpond_requests_total{outcome="miss",upstream=""} 0.0' in lines
    assert not any("seconds_count" in line and "miss" in line for line in lines)


def test_totals_are_sums_and_start_at_zero() -> None:
    metrics = Metrics(["one", "two"])
    for name in ("one", "two"):
        counters = metrics.of(name)
        counters.answered(Outcome.HIT, 10, manifest=True)
        counters.answered(Outcome.ERROR, 5, manifest=False)
        counters.errors["UNKNOWN"] += 1
        counters.bytes_from_upstream += 3
    total = metrics.total().snapshot()
    assert (total["requests"], total["hits"], total["errors"]) == (4, 2, {"UNKNOWN": 2})
    assert (total["bytes_to_clients"], total["bytes_saved"]) == (30, 20 - 6)
    assert (total["misses"], total["pulls_saved"]) == (0, 2)


async def test_statistics_show_the_counters_of_the_cache(proxy: Proxy) -> None:
    assert proxy.stats["cache"].keys() >= CacheCounters().snapshot().keys()
