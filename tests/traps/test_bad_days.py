"""Damage, failing scans and slow disks: every request ends, and readiness names the fault."""

import asyncio
import errno
import json
import os
import shutil
import sqlite3
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import ConfigError
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

REPO = "library/app"
IMAGE = content.image(1, [2000, 300_000])


async def pull(proxy: Proxy, image: content.Image, tag: str = "latest") -> None:
    async with asyncio.timeout(30):
        assert (await proxy.get(f"/v2/{REPO}/manifests/{tag}")).body == image.manifest
        for digest, data in image.blobs.items():
            assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).body == data
        await proxy.settled()


async def filled(start: Start, upstream: FakeUpstream) -> None:
    """Leave a cache behind that holds an image."""
    upstream.add(REPO, IMAGE)
    proxy = await start()
    await pull(proxy, IMAGE)
    await proxy.close()
    upstream.clear()


async def becomes_ready(proxy: Proxy) -> None:
    async with asyncio.timeout(30):
        while (await proxy.get("/-/readyz")).status != 200:
            await asyncio.sleep(0.01)


class Scan:
    """Lets looking through the store fail or wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = 0.0
        self.failed = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._scandir = os.scandir
        monkeypatch.setattr(os, "scandir", self._scan)

    def _scan(self, path: Any = ".") -> Any:
        if isinstance(path, int):  # a directory of the store; others go by their paths
            assert self.may_go_on.wait(60)
            if self.failed < self.failures:
                self.failed += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._scandir(path)


@pytest.fixture
async def scan(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scan]:
    scan = Scan(monkeypatch)
    yield scan
    scan.may_go_on.set()


async def test_t59_a_scan_that_failed_once_is_tried_again(
    start: Start, upstream: FakeUpstream, scan: Scan
) -> None:
    await filled(start, upstream)
    proxy = await start()
    await proxy.close()
    shutil.rmtree(proxy.storage / "index")
    scan.failures = 1
    proxy = await start()
    await until(lambda: scan.failed == 1)
    new = content.image(2)
    upstream.add(REPO, new, "new")
    await pull(proxy, new, "new")
    await becomes_ready(proxy)
    await until(lambda: proxy.stats["cache"]["files"] >= 1 + len(IMAGE.blobs))
    await pull(proxy, IMAGE)
    assert proxy.held() >= {IMAGE.digest, *IMAGE.blobs}


async def test_t59_a_scan_that_always_fails_stops_no_pull_and_readiness_tells(
    start: Start, upstream: FakeUpstream, scan: Scan
) -> None:
    await filled(start, upstream)
    scan.failures = float("inf")
    proxy = await start(storage={"max_size": "400KiB"})
    await until(lambda: scan.failed > 0)
    for seed in range(2, 5):  # more than there is room for
        image = content.image(seed, [300_000])
        upstream.add(REPO, image, f"v{seed}")
        await pull(proxy, image, f"v{seed}")
    answer = await proxy.get("/-/readyz")
    assert answer.status == 503
    assert "Input/output error" in json.loads(answer.body)["reasons"]["storage"]
    assert (await proxy.get("/-/healthz")).status == 200
    scan.failures = 0
    await becomes_ready(proxy)


async def test_t59_an_index_that_cannot_be_read_is_read_again(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(start, upstream)
    connect, left = sqlite3.connect, [1]

    def failing(*args: Any, **more: Any) -> Any:
        if left[0] and "mode=ro" in str(args[0]):
            left[0] -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return connect(*args, **more)

    monkeypatch.setattr(sqlite3, "connect", failing)
    proxy = await start(offline=True)
    await pull(proxy, IMAGE)
    tags = await proxy.get(f"/v2/{REPO}/tags/list")
    assert json.loads(tags.body)["tags"] == ["latest"]


async def test_t59_what_lies_here_is_not_fetched_again_while_a_lost_index_is_rebuilt(
    start: Start, upstream: FakeUpstream, scan: Scan
) -> None:
    await filled(start, upstream)
    proxy = await start()
    await proxy.close()
    shutil.rmtree(proxy.storage / "index")
    upstream.clear()
    scan.may_go_on.clear()
    proxy = await start()
    async with asyncio.timeout(20):
        answer = await proxy.get(f"/v2/{REPO}/manifests/{IMAGE.digest}")
        assert answer.body == IMAGE.manifest
        for digest, data in IMAGE.blobs.items():
            answers = await asyncio.gather(
                *(proxy.get(f"/v2/{REPO}/blobs/{digest}") for _ in range(3))
            )
            assert all(answer.body == data for answer in answers)
    assert not any(upstream.bodies(digest) for digest in IMAGE.blobs)
    assert upstream.count("GET", "manifest", IMAGE.digest) == 0
    scan.may_go_on.set()
    await becomes_ready(proxy)
    sizes = [len(IMAGE.manifest), *map(len, IMAGE.blobs.values())]
    blocks = sum(-(-size // 4096) * 4096 for size in sizes)
    await until(lambda: proxy.stats["cache"]["bytes"] == blocks)


async def test_t59_a_file_that_is_not_its_name_is_set_aside_when_it_is_asked_for(
    start: Start, upstream: FakeUpstream, scan: Scan
) -> None:
    await filled(start, upstream)
    proxy = await start()
    await proxy.close()
    shutil.rmtree(proxy.storage / "index")
    bad = IMAGE.layers[0]
    path = proxy.storage / "blobs" / bad.replace(":", "/")
    path.write_bytes(b"\0" * path.stat().st_size)
    scan.may_go_on.clear()
    proxy = await start()
    async with asyncio.timeout(20):
        assert (await proxy.get(f"/v2/{REPO}/blobs/{bad}")).body == IMAGE.blobs[bad]
    assert upstream.bodies(bad) >= 1
    assert proxy.stats["cache"]["corrupted"] == 1
    scan.may_go_on.set()


@pytest.mark.parametrize("name", ["a#b", "a?b=c", "100%", "%41%zz", "sp ace", "ü", "a'b\"c;d"])
async def test_t63_any_character_may_stand_in_the_path(
    start: Start, upstream: FakeUpstream, tmp_path: Path, name: str
) -> None:
    storage = {"path": str(tmp_path / name / "cache")}
    upstream.add(REPO, IMAGE)
    proxy = await start(storage=storage)
    assert (await proxy.get(f"/v2/{REPO}/manifests/latest")).status == 200
    for digest in IMAGE.blobs:
        assert (await proxy.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
    await proxy.settled()
    await proxy.close()
    proxy = await start(storage=storage, offline=True)
    assert (await proxy.get(f"/v2/{REPO}/manifests/latest")).body == IMAGE.manifest
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_t63_a_path_that_would_be_expanded_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMEWHERE", "elsewhere")
    with pytest.raises(ConfigError, match=r"storage\.path.*\$NAME"):
        await start(storage={"path": str(tmp_path / "$SOMEWHERE")})


@asynccontextmanager
async def slow_syncs(monkeypatch: pytest.MonkeyPatch, least: int) -> AsyncIterator[list[int]]:
    """Let every fsync of a spool file of at least so many bytes wait until all is over."""
    may_end, waiting, fsync = threading.Event(), [], os.fsync

    def slow(fd: int) -> None:
        if "/spool/" in os.readlink(f"/proc/self/fd/{fd}") and os.fstat(fd).st_size >= least:  # noqa: PTH115
            waiting.append(fd)
            assert may_end.wait(60)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    try:
        yield waiting
    finally:
        may_end.set()


async def test_t63_slow_syncs_do_not_delay_a_manifest(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add(REPO, IMAGE)
    blobs = [content.blob(200_000 + number, number) for number in range(8)]
    digests = [upstream.add_blob(REPO, data) for data in blobs]
    proxy = await start(memory={"manifests": 1})
    await pull(proxy, IMAGE)
    new = content.image(2)
    upstream.add(REPO, new, "new")
    async with slow_syncs(monkeypatch, 150_000) as waiting:
        pulls = [asyncio.create_task(proxy.get(f"/v2/{REPO}/blobs/{d}")) for d in digests]
        await until(lambda: len(waiting) >= 6)
        async with asyncio.timeout(30):
            held = await proxy.get(f"/v2/{REPO}/manifests/{IMAGE.digest}")
            assert held.body == IMAGE.manifest, "it is read from the disk"
            fresh = await proxy.get(f"/v2/{REPO}/manifests/new")
            assert fresh.body == new.manifest, "it is fetched and stored"
        assert len(waiting) >= 6
    for task, data in zip(pulls, blobs, strict=True):
        assert (await task).body == data
    await proxy.settled()


def small_descriptors(seed: int, number: int) -> bytes:
    layers = [{"digest": content.digest(b"%d %d" % (seed, n)), "size": n} for n in range(number)]
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


async def test_t63_manifests_take_no_more_memory_than_is_set_for_them(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(memory={"manifests": "1MiB", "blobs": 1})
    kept: Callable[[str], tracemalloc.Filter] = lambda path: tracemalloc.Filter(True, path)  # noqa: E731
    places = ["*/json/*", "*/proxy/core/manifests.py", "*/proxy/repository/*", "*/cachetools/*"]
    tracemalloc.start()
    try:
        for seed in range(40):
            body = small_descriptors(seed, 1500)
            digest = upstream.add_manifest(REPO, body, content.OCI_MANIFEST)
            assert (await proxy.get(f"/v2/{REPO}/manifests/{digest}")).status == 200
        found = tracemalloc.take_snapshot().filter_traces([kept(place) for place in places])
        size = sum(trace.size for trace in found.traces)
    finally:
        tracemalloc.stop()
    assert size < 3 * 1024 * 1024
