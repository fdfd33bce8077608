"""Measures on this machine what `fleet_site.Costs` states: one replica, Redis, a bucket.

CPU seconds are those of the process as the kernel counts them, so a slow client does not matter.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import obstore
import redis as redis_py

from benchmarks import bench, ours
from benchmarks.fleet_site import GB, MB, Costs
from benchmarks.processes import cpu_seconds
from benchmarks.pull import Connection, pull
from benchmarks.upstream import ACCEPT
from proxy.core.names import Digest
from proxy.fleet.leases import Leases
from proxy.fleet.store import Store
from proxy.runtime.part_counters import FleetCounters
from tests.parts import redis, seaweed
from tests.parts.process import workdir

_SIZE = 300_000_000
_TIMES = 5
_REQUESTS = 20_000
_OBJECT = 100_000_000
_LEASES = 5_000
_ROWS, _READS = 1_000, 300
_ROW = "x" * 300
"""About as long is what a replica says of itself while it downloads one blob."""


class _Redis(NamedTuple):
    """Seconds that a command takes, CPU seconds of one for a lease, and of one row of a list."""

    wait: float
    command: float
    row: float


def main() -> int:
    """Print what is measured beside what the model uses."""
    used = Costs()
    with bench.running(1) as running:
        request, send, receive = _replica(running)
    redis_ = _redis()
    put, get = _bucket()
    print(f"a command of Redis, µs: {redis_.wait * 1e6:.3g} here")
    for name, measured, model in (
        ("CPU of a hit on a manifest, µs", request * 1e6, used.request * 1e6),
        ("CPU of a GB to a client, s", send * GB, used.send * GB),
        ("CPU of a GB from a registry, s", receive * GB, used.receive * GB),
        ("CPU of Redis for a command, µs", redis_.command * 1e6, used.redis_command * 1e6),
        ("CPU of Redis for a replica in a list, µs", redis_.row * 1e6, used.redis_row * 1e6),
        ("PUT of 100 MB to SeaweedFS, MB/s", put / MB, used.bucket_stream / MB),
        ("GET of 100 MB from SeaweedFS, MB/s", get / MB, used.bucket_stream / MB),
    ):
        print(f"{name}: {measured:.3g} here, {model:.3g} in the model")
    return 0


def _replica(running: bench.Bench) -> tuple[float, float, float]:
    """Return CPU seconds of a hit, of a byte sent, and of a byte fetched."""
    path = running.content.path(running.content.blob(_SIZE))
    image = running.content.image(1_000_000, 1)
    manifest = f"/v2/{image.repository}/manifests/{image.tag}"
    with ours.millpond(running.url) as server:
        with _counted(server.pid) as cold:
            pull(server.url, path)
            time.sleep(1)  # hashed and stored
        with _counted(server.pid) as warm:
            for _ in range(_TIMES):
                pull(server.url, path)
        with Connection(server.url) as connection:
            connection.get(manifest, **ACCEPT)
            with _counted(server.pid) as hits:
                for _ in range(_REQUESTS):
                    connection.get(manifest, **ACCEPT)
    send = warm[0] / _TIMES / _SIZE
    return hits[0] / _REQUESTS, send, cold[0] / _SIZE - send


@contextmanager
def _counted(pid: int) -> Iterator[list[float]]:
    """Give a list that has the CPU seconds of a process afterwards."""
    taken: list[float] = []
    before = cpu_seconds(pid)
    yield taken
    taken.append(cpu_seconds(pid) - before)


def _redis() -> _Redis:
    """Return what Redis takes for leases, and for the list of replicas."""
    with redis.running() as server, redis_py.Redis.from_url(server.url) as client:
        client.set("key", "value")
        seconds = []
        for _ in range(5_000):
            begin = time.perf_counter()
            client.get("key")
            seconds.append(time.perf_counter() - begin)
        begun = _redis_cpu(client)
        asyncio.run(_leases(server.url))
        commands = _redis_cpu(client) - begun
        client.hset("replicas", mapping={f"http://10.0.0.{n}:5000": _ROW for n in range(_ROWS)})
        begun = _redis_cpu(client)
        for _ in range(_READS):
            client.hgetall("replicas")
        rows = _redis_cpu(client) - begun
    return _Redis(statistics.median(seconds), commands / (2 * _LEASES), rows / _READS / _ROWS)


async def _leases(url: str) -> None:
    """Take many leases, one after the other, and say each time that the content is stored."""
    store = Store(url, "measured", FleetCounters())
    leases = Leases(store, "http://10.0.0.1:5000")
    for number in range(_LEASES):
        digest = Digest(f"sha256:{number:064x}")
        await leases.acquire("docker.io", digest)
        leases.stored(digest)
    await leases.close()
    await store.close()


def _redis_cpu(client: redis_py.Redis) -> float:
    """Return the CPU seconds that Redis has used."""
    used = client.info("cpu")
    assert isinstance(used, dict)
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


def _bucket() -> tuple[float, float]:
    """Return the bytes a second of a PUT and of a GET."""
    with workdir("bucket") as root, seaweed.running(root) as server:
        store = server.bucket("measured").store
        data = bytes(_OBJECT)
        begin = time.perf_counter()
        obstore.put(store, "object", data)
        put = time.perf_counter() - begin
        begin = time.perf_counter()
        got = obstore.get(store, "object").bytes()
        get = time.perf_counter() - begin
        assert len(got) == _OBJECT
    return _OBJECT / put, _OBJECT / get
