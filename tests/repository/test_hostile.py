"""Hostile upstreams, disks that fail, and races without a loser."""

import asyncio
import json
import os
import threading
import time
from typing import Any

import pytest
from aiohttp import ClientPayloadError

from proxy.content import eviction
from proxy.core.errors import StorageError
from proxy.core.names import DigestVerifier
from proxy.index import blob_rows
from proxy.storage.disk import DiskStore
from proxy.upstream.transport import Transport
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import (
    body,
    chunked,
    corrupt,
    delay,
    digest_header,
    header,
    slow,
    status,
    truncate,
)
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

BIG = content.image(3, layers=(3_000_000,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
PATH = f"/v2/app/blobs/{LAYER}"
LATEST = "/v2/app/manifests/latest"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", BIG)


async def held(proxy: Proxy, path: str = PATH) -> None:
    assert (await proxy.get(path)).status == 200
    await proxy.settled()


async def test_t33_an_unsupported_head_confirms_nothing(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("org/else", content.image(99))
    upstream.add("org/copy", BIG)
    await held(proxy)
    upstream.fail(405, kind="blob", method="HEAD")
    assert (await proxy.get(f"/v2/org/else/blobs/{LAYER}")).status == 404
    assert (await proxy.get(f"/v2/org/copy/blobs/{LAYER}")).body == DATA


async def test_t33_a_head_with_another_digest_confirms_nothing(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await held(proxy, LATEST)
    upstream.add("org/else", content.image(99))
    upstream.fault(
        status(200),
        digest_header(content.image(99).digest),
        header("Content-Type", BIG.media_type),
        header("Content-Length", "10"),
        method="HEAD",
        repository="org/else",
    )
    assert (await proxy.get(f"/v2/org/else/manifests/{BIG.digest}")).status == 404


@pytest.mark.parametrize("max_size", ["1GiB", "1MiB"], ids=["kept", "through"])
async def test_t03_an_empty_body_is_not_served_for_another_digest(
    start: Start, upstream: FakeUpstream, max_size: str
) -> None:
    proxy = await start(storage={"max_size": max_size})
    await proxy.get(LATEST)
    upstream.fault(body(b""), kind="blob", times=1)
    assert (await proxy.get(PATH)).status == 502
    assert (await proxy.get(PATH)).body == DATA


async def test_t02_a_login_page_is_not_accepted_as_a_manifest(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fault(body(b"<html>login</html>", "text/html"), digest_header(None), kind="manifest")
    answer = await proxy.get(LATEST)
    assert (answer.status, b"not a manifest" in answer.body) == (502, True)
    assert not proxy.held()
    assert not await proxy.history("docker.io", "library/app", "latest")


async def test_a_head_without_headers_is_followed_by_a_get(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fault(header("Content-Length", "0"), method="HEAD")
    answer = await proxy.head(LATEST)
    assert answer.headers["Content-Length"] == str(len(BIG.manifest))


async def test_a_manifest_that_lies_about_sizes_harms_only_itself(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(storage={"max_size": "10MiB"})
    await held(proxy)
    tiny = upstream.add_blob("evil/x", b"tiny")
    for size in (10 * 1024 * 1024 - 50_000, 10**15):
        config = {"mediaType": "application/json", "digest": tiny, "size": size}
        other = {"mediaType": "application/json", "digest": LAYER, "size": size}
        lie = {
            "schemaVersion": 2,
            "mediaType": content.OCI_MANIFEST,
            "config": config,
            "layers": [other],
        }
        upstream.add_manifest(
            "evil/x", json.dumps(lie).encode(), content.OCI_MANIFEST, [f"v{size}"]
        )
        assert (await proxy.get(f"/v2/evil/x/manifests/v{size}")).status == 200
        assert (await proxy.get(f"/v2/evil/x/blobs/{tiny}")).body == b"tiny"
        await proxy.settled()
        assert LAYER in proxy.held(), "nothing was evicted for a lie"
        assert (await proxy.get(PATH)).headers["Cache-Status"] == "Millpond; hit"


async def test_t04_a_download_that_outgrows_the_room_passes_through(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(storage={"max_size": "1MiB"})
    upstream.fault(chunked(), kind="blob")
    for _ in range(2):
        assert (await proxy.get(PATH)).body == DATA
        await proxy.settled()
    assert (proxy.numbers["misses"], proxy.numbers["through"]) == (1, 1)
    assert upstream.bodies(LAYER) == 3, "the first one's body, its rest, and the second one's"
    assert not proxy.spooled()


async def test_t04_bytes_fetched_again_must_equal_those_already_sent(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(storage={"max_size": "1MiB"})
    upstream.fault(chunked(), slow(10_000_000), kind="blob")
    upstream.fault(corrupt(10), kind="blob", times=1)
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)
    assert (await proxy.get(PATH)).body == DATA


async def test_t04_a_failing_store_is_counted_and_the_client_is_served(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        raise StorageError("storing: Input/output error")

    monkeypatch.setattr(DiskStore, "put", failing)
    for path in (LATEST, PATH):
        assert (await proxy.get(path)).status == 200
        await proxy.settled()
    assert proxy.stats["cache"]["storage_errors"] == 2
    assert proxy.stats["cache"]["bytes"] == 0
    assert "Input/output error" in proxy.log.getvalue()
    assert not proxy.spooled()


async def test_t01_an_unforeseen_failure_never_completes_a_body(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(DigestVerifier, "check", broken)
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)
    assert "ZeroDivisionError" in proxy.log.getvalue()
    monkeypatch.undo()
    assert (await proxy.get(PATH)).body == DATA


async def test_t36_an_eviction_leaves_content_that_was_fetched_again_meanwhile(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await start(storage={"max_size": "1MiB", "high_mark": 0.5, "low_mark": 0.4})
    first, second, third = (
        upstream.add_blob("library/app", content.blob(size, seed=size))
        for size in (200_000, 300_000, 310_000)
    )
    for digest in (first, second):
        await held(proxy, f"/v2/app/blobs/{digest}")
    delete, entered, gate = DiskStore.delete, asyncio.Event(), asyncio.Event()

    async def slow(self: DiskStore, digests: list[Any]) -> list[Any]:
        entered.set()
        await gate.wait()
        return await delete(self, digests)

    monkeypatch.setattr(DiskStore, "delete", slow)
    assert (await proxy.get(f"/v2/app/blobs/{third}")).status == 200
    await entered.wait()
    assert (await proxy.get(f"/v2/app/blobs/{first}")).status == 200
    gate.set()
    await proxy.settled()

    def on_disk() -> tuple[int, int]:
        files = [file for file in (proxy.storage / "blobs").rglob("*") if file.is_file()]
        return len(files), sum(file.stat().st_blocks * 512 for file in files)

    def counted() -> tuple[int, int]:
        cache = proxy.stats["cache"]
        return cache["files"], cache["bytes"]

    # While the kernel writes a file back, its blocks may be missing in st_blocks for a moment.
    await until(lambda: counted() == on_disk())
    for digest in (first, third):
        answer = await proxy.get(f"/v2/app/blobs/{digest}")
        assert content.digest(answer.body) == digest


async def test_c06_an_image_fetched_again_by_another_repository_is_complete_for_both(
    start: Start, upstream: FakeUpstream, proxy: Proxy
) -> None:
    upstream.add("org/copy", BIG)
    for path in (LATEST, *(f"/v2/app/blobs/{digest}" for digest in BIG.blobs)):
        await held(proxy, path)
    (proxy.storage / "blobs/sha256" / LAYER.removeprefix("sha256:")).unlink()
    await held(proxy, f"/v2/org/copy/blobs/{LAYER}")
    await proxy.close()
    offline = await start(offline=True)
    assert (await offline.get(LATEST)).status == 200
    for digest in BIG.blobs:
        assert (await offline.get(f"/v2/app/blobs/{digest}")).status == 200


async def test_c06_head_does_not_report_a_blob_whose_file_is_gone(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await held(proxy)
    (proxy.storage / "blobs/sha256" / LAYER.removeprefix("sha256:")).unlink()
    upstream.remove("library/app", LAYER)
    assert (await proxy.head(PATH)).status == 404


async def test_c05_a_lowered_limit_holds_after_a_restart(
    start: Start, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "WATCH_SECONDS", 0.05)
    await held(proxy)
    await proxy.close()
    smaller = await start(storage={"max_size": "1MiB"})
    await until(lambda: not smaller.held())
    await until(lambda: smaller.stats["cache"]["bytes"] == 0)


async def test_concurrent_heads_cause_one_request(proxy: Proxy, upstream: FakeUpstream) -> None:
    await asyncio.gather(*(proxy.head(LATEST) for _ in range(20)))
    assert upstream.count("HEAD") == 1
    upstream.add("org/copy", BIG)
    await held(proxy)
    upstream.clear()
    await asyncio.gather(*(proxy.get(f"/v2/org/copy/blobs/{LAYER}") for _ in range(20)))
    assert [request.method for request in upstream.requests] == ["HEAD"]


async def test_a_read_error_while_sending_counts_as_a_disk_error(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await held(proxy)
    real = os.sendfile

    def failing(to: int, fd: int, offset: int, size: int) -> int:
        if offset:
            raise OSError(5, "Input/output error")
        return real(to, fd, 0, min(size, 1000))

    monkeypatch.setattr(os, "sendfile", failing)
    assert (await proxy.get(PATH)).body == DATA
    assert LAYER not in proxy.held()
    assert len(list((proxy.storage / "quarantine").glob("*.json"))) == 1
    monkeypatch.undo()
    assert not proxy.numbers["errors"]
    await held(proxy)
    assert (await proxy.get(PATH)).body == DATA


@pytest.mark.parametrize("announced", [True, False])
async def test_http_1_0_clients_can_detect_the_end_of_a_body(
    proxy: Proxy, upstream: FakeUpstream, *, announced: bool
) -> None:
    effects = [] if announced else [chunked()]
    if effects:
        upstream.fault(*effects, kind="blob")
    host, port = proxy.app.address.split(":")
    for spoilt in (True, False):
        rule = upstream.fault(corrupt(-1), kind="blob", times=1) if spoilt else None
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {PATH} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        async with asyncio.timeout(30):
            got = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, received = got.partition(b"\r\n\r\n")
        if rule is None:
            assert received == DATA
        else:
            assert b"502" in head.splitlines()[0] or len(received) < len(DATA)


async def test_c19_refused_requests_count_as_no_saving(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    for _ in range(5):
        await proxy.ask("POST", LATEST)
        await proxy.get("/v2/evil.example/app/manifests/latest")
    total = proxy.stats["total"]
    assert (total["requests"], total["upstream_requests_saved"], total["bytes_saved"]) == (10, 0, 0)


async def test_c19_an_early_disconnect_is_counted(proxy: Proxy, upstream: FakeUpstream) -> None:
    gate = upstream.hold(kind="manifest")
    asked = asyncio.create_task(proxy.get(LATEST))
    await upstream.until(lambda: upstream.count("GET") == 1)
    asked.cancel()
    await until(lambda: proxy.numbers["left"] == 1)
    gate.set()
    assert proxy.numbers["requests"] == 1


async def test_secrets_stay_out_of_tracebacks(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.auth.users = {"alice": "hunter2"}
    proxy = await start(hub={"username": "alice", "password": "hunter2"})
    await proxy.get(LATEST)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Transport, "_request", broken)
    answer = await proxy.get(
        f"/v2/app/manifests/{content.digest(b'x')}", Authorization="Basic c2VjcmV0"
    )
    assert answer.status == 500
    log = proxy.log.getvalue()
    assert "ZeroDivisionError" in log
    for secret in ("hunter2", "YWxpY2U6aHVudGVyMg==", "c2VjcmV0"):
        assert secret not in log


async def test_t06_a_disconnect_while_content_is_dropped_leaves_it_storable(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await held(proxy)
    (proxy.storage / "blobs/sha256" / LAYER.removeprefix("sha256:")).unlink()
    drop, entered = blob_rows.drop, threading.Event()

    def slow(db: Any, digests: Any) -> Any:
        entered.set()
        time.sleep(0.3)
        return drop(db, digests)

    monkeypatch.setattr(blob_rows, "drop", slow)
    leaving = asyncio.create_task(proxy.get(PATH))
    await until(entered.is_set)
    leaving.cancel()
    await asyncio.sleep(0)
    monkeypatch.undo()
    await asyncio.sleep(0.5)
    await held(proxy)
    assert proxy.held() == {LAYER}


async def test_t08_a_blob_requested_as_a_manifest_is_not_read_whole(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    big = upstream.add_blob("library/app", content.blob(9 * 1024 * 1024))
    small = upstream.add_blob("library/app", b"no manifest")
    for digest in (LAYER, big, small):
        await held(proxy, f"/v2/app/blobs/{digest}")
        path = f"/v2/app/manifests/{digest}"
        assert (await proxy.get(path)).status == 404
        assert (await proxy.head(path)).status == 404
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).headers[
            "Cache-Status"
        ] == "Millpond; hit"


async def test_t13_a_slow_head_does_not_overwrite_the_result_of_a_get(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    new = content.image(77)
    gate = upstream.hold(method="HEAD")
    slow = asyncio.create_task(proxy.head(LATEST))
    await upstream.until(lambda: upstream.count("HEAD") == 1)
    upstream.add("library/app", new, tags=["latest"])
    assert (await proxy.get(LATEST)).body == new.manifest
    gate.set()
    await slow
    assert (await proxy.get(LATEST)).body == new.manifest


async def test_without_a_stale_copy_a_client_waits_for_a_slow_check(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"stale_if_error": 0}, timeouts={"check": "100ms"})
    for path in (LATEST, *(f"/v2/app/blobs/{digest}" for digest in BIG.blobs)):
        await held(proxy, path)
    clock.advance(1e6)
    upstream.fault(delay(0.4), method="HEAD")
    assert (await proxy.get(LATEST)).status == 200


async def test_c02_a_rate_limit_is_forgotten_at_the_end_of_its_window(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.behaviour.rate_limit = limit = RateLimit(limit=10, remaining=1, window=3600)
    await held(proxy, LATEST)
    limit.remaining = 10
    clock.advance(5 * 3600)
    upstream.clear()
    assert (await proxy.get(LATEST)).headers["Cache-Status"] == (
        "Millpond; fwd=stale; fwd-status=200; ttl=300; detail=confirmed"
    )


@pytest.mark.parametrize("spoilt", [b"{", b"{}", b"[]", b'{"manifests": {}}'])
async def test_c17_an_unreadable_list_is_an_error_and_not_empty(
    proxy: Proxy, upstream: FakeUpstream, spoilt: bytes
) -> None:
    path = f"/v2/library/app/referrers/{BIG.digest}"
    upstream.fault(body(spoilt, content.OCI_INDEX), kind="referrers")
    assert (await proxy.get(path)).status == 502
    upstream.heal()
    upstream.behaviour.referrers = False
    upstream.fault(status(200), body(b'{"schemaVersion": 2}', content.OCI_INDEX), kind="manifest")
    assert (await proxy.get(path)).status == 502


@pytest.mark.parametrize(
    "link", ["<http://[bad>; rel=next", "</v2/x?n=1>; rel=next", "<?token=a>; rel=next"]
)
async def test_invalid_links_between_pages_are_an_error_and_no_loop(
    proxy: Proxy, upstream: FakeUpstream, link: str
) -> None:
    upstream.fault(header("Link", link), kind="tags")
    answer = await proxy.get("/v2/app/tags/list?n=1")
    assert (answer.status, b"UNAVAILABLE" in answer.body) == (502, True)


async def test_a_failed_resumption_is_retried(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(patience={})
    upstream.fault(slow(10_000_000), truncate(1_000_000), kind="blob", times=1)
    upstream.fault(status(503), kind="blob", after=1, times=4)
    assert (await proxy.get(PATH)).body == DATA
