"""Freshness, offline and failure, counted at the upstream."""

import asyncio
from typing import Any

import pytest

from proxy.repository.tags import Tags
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import digest_header
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

OLD, NEW = content.image(1), content.image(2)
LATEST = "/v2/app/manifests/latest"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", OLD, tags=["latest"])


def by_digest(image: content.Image) -> str:
    return f"/v2/app/manifests/{image.digest}"


async def pull(proxy: Proxy, image: content.Image, ref: str = "latest") -> None:
    answer = await proxy.get(f"/v2/app/manifests/{ref}")
    assert (answer.status, answer.body) == (200, image.manifest)
    for digest, data in image.blobs.items():
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == data
    await proxy.settled()


async def test_c02_a_fresh_tag_causes_no_request(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    upstream.clear()
    clock.advance(299)
    await pull(proxy, OLD)
    assert (await proxy.head(LATEST)).headers["Docker-Content-Digest"] == OLD.digest
    await pull(proxy, OLD, OLD.digest)
    assert not upstream.requests
    assert proxy.numbers["hits"] == 3 + 2 * len(OLD.blobs)


async def test_c09_a_stale_tag_is_served_at_once_and_checked_in_the_background(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    upstream.add("library/app", NEW, tags=["latest"])
    upstream.clear()
    clock.advance(301)
    gate = upstream.hold(kind="manifest")
    answers = await asyncio.gather(*(proxy.get(LATEST) for _ in range(10)))
    assert {answer.body for answer in answers} == {OLD.manifest}
    await upstream.until(lambda: upstream.count("HEAD") == 1)
    await until(lambda: bool(proxy.numbers["stale"] == 10))
    gate.set()
    await upstream.until(lambda: upstream.count("GET", ref=NEW.digest) == 1)
    await settled(proxy, NEW)
    assert upstream.count("HEAD") == 1


async def settled(proxy: Proxy, image: content.Image) -> None:
    async with asyncio.timeout(30):
        while (await proxy.get(LATEST)).body != image.manifest:
            await asyncio.sleep(0.01)


async def test_a_tag_too_old_is_checked_by_head_and_fetched_only_when_new(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    upstream.clear()
    clock.advance(4000)
    assert (await proxy.get(LATEST)).body == OLD.manifest
    assert [(r.method, r.reference) for r in upstream.requests] == [("HEAD", "latest")]
    upstream.add("library/app", NEW, tags=["latest"])
    upstream.clear()
    clock.advance(4000)
    assert (await proxy.get(LATEST)).body == NEW.manifest
    asked = [(request.method, request.reference) for request in upstream.requests]
    assert asked == [("HEAD", "latest"), ("GET", NEW.digest)]
    assert proxy.numbers["revalidated"] == 1


async def test_t13_a_head_records_the_tag(
    proxy: Proxy, upstream: FakeUpstream, start: Start
) -> None:
    assert (await proxy.head(LATEST)).headers["Docker-Content-Digest"] == OLD.digest
    await pull(proxy, OLD, OLD.digest)
    upstream.clear()
    await pull(proxy, OLD)
    assert not upstream.requests


async def test_c04_a_cold_manifest_is_requested_once(
    proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, fetch = 0, Tags._fetch

    async def counted(tags: Tags, *arguments: Any) -> Any:
        nonlocal asking
        asking += 1
        return await fetch(tags, *arguments)

    monkeypatch.setattr(Tags, "_fetch", counted)
    gate = upstream.hold(kind="manifest")
    asked = [asyncio.create_task(proxy.get(LATEST)) for _ in range(20)]
    await upstream.until(lambda: len(upstream.requests) == 1)
    await until(lambda: asking == 20)
    gate.set()
    assert {answer.body for answer in await asyncio.gather(*asked)} == {OLD.manifest}
    assert upstream.count("GET") == 1
    assert (proxy.numbers["misses"], proxy.numbers["joins"]) == (1, 19)


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_c03_upstream_down_means_the_last_good_copy_with_a_warning(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock, status: int
) -> None:
    await pull(proxy, OLD)
    clock.advance(1e7)
    upstream.fail(status)
    for answer in (await proxy.get(LATEST), await proxy.head(LATEST)):
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == OLD.digest
        assert answer.headers["Warning"].startswith('299 - "')
    assert proxy.numbers["stale"] == 2


async def test_c03_upstream_gone_and_a_restart(
    start: Start, upstream: FakeUpstream, clock: Clock, proxy: Proxy
) -> None:
    await pull(proxy, OLD)
    await upstream.stop()
    clock.advance(1e7)
    assert (await proxy.get(LATEST)).body == OLD.manifest
    assert (await proxy.get(by_digest(OLD))).status == 200
    unknown = await proxy.get("/v2/other/manifests/latest")
    assert unknown.status == 502
    assert b'"UNAVAILABLE"' in unknown.body


async def test_the_last_good_copy_is_complete(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    upstream.add("library/app", NEW, tags=["latest"])
    clock.advance(4000)
    assert (await proxy.head(LATEST)).headers["Docker-Content-Digest"] == NEW.digest
    upstream.fail(503)
    clock.advance(4000)
    answer = await proxy.get(LATEST)
    assert answer.body == OLD.manifest, "nobody has pulled the new one, so it cannot be served"
    assert "Warning" in answer.headers


async def test_stale_if_error_has_an_end(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"tag_ttl": "1s", "stale_while_revalidate": 0, "stale_if_error": "1h"})  # fmt: skip
    await pull(proxy, OLD)
    upstream.fail(503)
    clock.advance(3600)
    assert (await proxy.get(LATEST)).status == 200
    clock.advance(2)
    assert (await proxy.get(LATEST)).status == 502


async def test_c12_a_deleted_tag_is_followed(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await pull(proxy, OLD)
    upstream.remove_tag("library/app", "latest")
    clock.advance(4000)
    assert (await proxy.get(LATEST)).status == 404
    assert (await proxy.get(by_digest(OLD))).status == 200


async def test_an_absence_is_cached_and_a_failure_is_not(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    for _ in range(3):
        answer = await proxy.get("/v2/app/manifests/none")
        assert (answer.status, b"MANIFEST_UNKNOWN" in answer.body) == (404, True)
    assert upstream.count("GET") == 1
    for status, expected in ((403, 403), (429, 429), (500, 502)):
        upstream.fail(status, times=2)
        for _ in range(2):
            assert (await proxy.get("/v2/app/manifests/later")).status == expected
    assert (await proxy.get("/v2/app/manifests/later")).status == 404


async def test_c15_a_rate_limit_is_reported_with_its_end(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fail(429, retry_after=17)
    answer = await proxy.get(LATEST)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "17")
    assert b'"TOOMANYREQUESTS"' in answer.body


async def test_offline_complete_images_are_served_without_requests(
    start: Start, upstream: FakeUpstream, clock: Clock, proxy: Proxy
) -> None:
    await pull(proxy, OLD)
    upstream.add("library/app", NEW, tags=["half"])
    assert (await proxy.get("/v2/app/manifests/half")).status == 200
    await proxy.close()
    clock.advance(1e8)
    upstream.clear()
    offline = await start(offline=True)
    await pull(offline, OLD)
    assert (await offline.head(LATEST)).status == 200
    assert (await offline.get("/v2/app/tags/list")).status == 200
    for path in (
        "/v2/app/manifests/half",
        by_digest(NEW),
        "/v2/app/manifests/none",
        "/v2/none/manifests/latest",
        f"/v2/app/blobs/{NEW.layers[0]}",
        "/v2/none/tags/list",
    ):
        for answer in (await offline.get(path), await offline.head(path)):
            assert answer.status == 404, path
        assert b"offline" in (await offline.get(path)).body
    assert not upstream.requests


@pytest.mark.parametrize(("depth", "status"), [(4, 200), (5, 404)])
async def test_offline_an_index_nested_too_deeply_counts_as_incomplete(
    start: Start, upstream: FakeUpstream, depth: int, status: int
) -> None:
    nested: content.Content = content.image(7)
    for _ in range(depth):
        nested = content.index(nested)
    upstream.add("library/nested", nested)
    online = await start()
    for path in ("manifests/latest", *(f"manifests/{digest}" for digest in nested.manifests)):
        assert (await online.get(f"/v2/nested/{path}")).status == 200
    for digest in nested.blobs:
        assert (await online.get(f"/v2/nested/blobs/{digest}")).status == 200
    await online.settled()
    await online.close()
    offline = await start(offline=True)
    assert (await offline.get("/v2/nested/manifests/latest")).status == status


async def test_t15_an_upstream_without_digest_headers(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.fault(digest_header(None))
    assert (await proxy.head(LATEST)).headers["Docker-Content-Digest"] == OLD.digest
    await pull(proxy, OLD)


async def test_a_wrong_digest_header_is_refused(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.fault(digest_header(NEW.digest))
    answer = await proxy.get(LATEST)
    assert answer.status == 502
    assert proxy.stats["cache"]["content_mismatches"] == 1
    assert not proxy.held()


async def test_head_unsupported_is_a_get(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.fail(405, method="HEAD")
    answer = await proxy.head(LATEST)
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, OLD.digest)
    assert answer.headers["Content-Length"] == str(len(OLD.manifest))


async def test_t21_the_same_manifest_in_two_repositories(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, OLD)
    upstream.add("org/copy", OLD)
    upstream.clear()
    assert (await proxy.get(f"/v2/org/copy/manifests/{OLD.digest}")).body == OLD.manifest
    assert [request.method for request in upstream.requests] == ["HEAD"]
    assert (await proxy.get(f"/v2/org/copy/manifests/{OLD.digest}")).status == 200
    assert len(upstream.requests) == 1


async def test_t33_content_is_not_served_to_another_repository(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, OLD)
    upstream.add("org/else", NEW)
    for path in (f"manifests/{OLD.digest}", f"blobs/{OLD.layers[0]}"):
        for answer in (
            await proxy.get(f"/v2/org/else/{path}"),
            await proxy.head(f"/v2/org/else/{path}"),
        ):
            assert answer.status == 404, path


async def test_t07_all_of_accept_and_no_encoding_go_upstream(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.behaviour.strict_accept = True
    upstream.add("library/multi", content.multi_platform(3))
    answer = await proxy.get("/v2/multi/manifests/latest", Accept="application/json")
    assert answer.status == 200
    await proxy.get(f"/v2/app/blobs/{OLD.layers[0]}", Accept_Encoding="gzip")
    for request in upstream.requests:
        assert request.headers["Accept-Encoding"] == "identity"
        assert len(request.headers.getall("User-Agent")) == 1


async def test_t10_an_index_and_unknown_types_come_byte_for_byte(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    for number, thing in enumerate(
        (content.multi_platform(5), content.multi_platform(5, docker=True), content.unknown(7),
         content.nested_index(8), content.artifact(OLD), content.image(9, algorithm="sha512"))
    ):  # fmt: skip
        upstream.add(f"org/thing{number}", thing)
        for _ in range(2):
            answer = await proxy.get(f"/v2/org/thing{number}/manifests/latest")
            assert answer.body == thing.manifest
            assert answer.headers["Content-Type"] == thing.media_type
            assert answer.headers["Docker-Content-Digest"] == thing.digest


async def test_a_manifest_altered_on_disk_is_fetched_again(
    start: Start, upstream: FakeUpstream, proxy: Proxy
) -> None:
    await pull(proxy, OLD)
    await proxy.close()
    file = proxy.storage / "blobs/sha256" / OLD.digest.removeprefix("sha256:")
    file.write_bytes(file.read_bytes().replace(b"1", b"2"))
    again = await start()
    upstream.clear()
    await pull(again, OLD)
    assert [request.reference for request in upstream.requests] == [OLD.digest]
    assert proxy.held() == {OLD.digest, *OLD.blobs}


async def test_history_is_kept_from_day_one(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    began = clock.now
    await pull(proxy, OLD)
    clock.advance(4000)
    upstream.add("library/app", NEW, tags=["latest"])
    await pull(proxy, NEW)
    clock.advance(4000)
    await pull(proxy, NEW)
    seen = await proxy.history("docker.io", "library/app", "latest")
    assert [(s.digest, s.first_seen - began, s.last_seen - began) for s in seen] == [
        (OLD.digest, 0, 0),
        (NEW.digest, 4000, 8000),
    ]
