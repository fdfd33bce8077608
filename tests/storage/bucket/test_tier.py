"""The bucket behind a running proxy: a second machine finds what a first one has fetched."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.content import bucket_uploads
from proxy.runtime.events import EventKind
from proxy.storage.bucket import breaker, client
from tests.fakes import content, faults
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.leaks import assert_sound
from tests.parts.process import free_port
from tests.parts.seaweed import TestBucket
from tests.running import Proxy, started, until

APP = content.image(1, layers=(9_000_000, 5000))
OTHER = content.image(2, layers=(2000,))
EVERYTHING = {*APP.blobs, *APP.manifests}
LARGE, SMALL = APP.layers

Machine = Callable[..., Awaitable[Proxy]]


@pytest.fixture
async def machine(
    upstream: FakeUpstream, clock: Clock, tmp_path: Path, bucket: TestBucket
) -> AsyncIterator[Machine]:
    """Start proxies with the same bucket and directories of their own, by name."""
    upstream.add("library/app", APP)
    async with AsyncExitStack() as stack:

        async def machine(name: str = "first", **settings: Any) -> Proxy:
            given = bucket.settings(**settings.pop("bucket", {}))
            storage = settings.pop("storage", {}) | {"bucket": given}
            changes = settings | {"storage": storage}
            return await stack.enter_async_context(
                started(upstream, tmp_path / name, clock, changes)
            )

        yield machine


async def pulled(proxy: Proxy, name: str = "app", image: content.Image = APP) -> None:
    """Pull an image as a client does that knows its digest, twice if a layer breaks off."""
    manifest = await proxy.get(f"/v2/{name}/manifests/{image.digest}")
    assert (manifest.status, manifest.body) == (200, image.manifest)
    assert manifest.headers["Content-Type"] == image.media_type
    for digest, data in image.blobs.items():
        answer = await proxy.get(f"/v2/{name}/blobs/{digest}")
        assert (answer.status, answer.body) == (200, data)
    await proxy.settled()


async def filled(proxy: Proxy, bucket: TestBucket, digests: set[str] = EVERYTHING) -> None:
    """Return once the bucket has all of these."""
    await until(lambda: digests <= {*bucket.objects()})
    await until(lambda: not uploads(proxy))


def uploads(proxy: Proxy) -> int:
    assert proxy.app.bucket is not None
    return proxy.app.bucket.uploads.pending


def counted(proxy: Proxy) -> dict[str, int]:
    return dict(proxy.app.admin._metrics.cache.bucket_requests)


async def test_a_second_machine_asks_the_registry_for_nothing(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    assert {**bucket.objects()} == {d: len(APP.blobs.get(d, APP.manifest)) for d in EVERYTHING}
    upstream.clear()
    second = await machine("second")
    await pulled(second)
    assert not upstream.requests
    assert second.held() >= EVERYTHING
    assert not counted(second)["put"], "what came from the bucket is not written to it"
    assert counted(second) == {"get": 4, "head": 0, "put": 0, "list": 0, "delete": 0}
    await pulled(second)
    assert counted(second)["get"] == 4, "a hit asks the bucket for nothing"


async def test_a_cold_miss_costs_one_get_that_finds_nothing_and_one_put(
    machine: Machine, bucket: TestBucket
) -> None:
    proxy = await machine()
    await pulled(proxy)
    await filled(proxy, bucket)
    assert counted(proxy) == {"get": 4, "head": 0, "put": 4, "list": 0, "delete": 0}


async def test_a_card_says_whose_content_it_is(machine: Machine, bucket: TestBucket) -> None:
    proxy = await machine()
    await pulled(proxy)
    await filled(proxy, bucket)
    holders = {"v": 1, "public": True, "in": ["docker.io/library/app"]}
    assert bucket.card(LARGE) == holders | {"type": None}
    assert bucket.card(APP.digest) == holders | {"type": APP.media_type}


async def test_another_repository_gets_content_only_if_the_registry_confirms_it(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    secret = {"username": "someone", "password": "secret"}
    first = await machine(hub=secret)
    await pulled(first)
    await filled(first, bucket)
    assert bucket.card(LARGE)["public"] is False
    upstream.add("org/copy", content.image(1, layers=(9_000_000, 5000)))
    second = await machine("second", hub=secret)
    assert (await second.get(f"/v2/org/none/blobs/{LARGE}")).status == 404
    await second.settled()
    upstream.clear()
    answer = await second.get(f"/v2/org/copy/blobs/{LARGE}")
    assert answer.body == APP.blobs[LARGE]
    await second.settled()
    asked = [(one.method, one.kind) for one in upstream.requests if one.kind == "blob"]
    assert {*asked} == {("HEAD", "blob")}, "confirmed by the registry, sent by the bucket"


async def test_another_repository_gets_no_manifest_of_the_bucket(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    upstream.clear()
    second = await machine("second")
    assert (await second.get(f"/v2/org/none/manifests/{APP.digest}")).status == 404
    assert upstream.count(kind="manifest") == 1
    assert (await second.get(f"/v2/app/manifests/{APP.digest}")).body == APP.manifest
    assert upstream.count(kind="manifest") == 1, "its own repository gets it from the bucket"


async def test_a_public_blob_that_a_manifest_lists_needs_no_confirmation(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    upstream.add("org/copy", APP)
    second = await machine("second")
    assert (await second.get("/v2/org/copy/manifests/latest")).status == 200
    upstream.clear()
    assert (await second.get(f"/v2/org/copy/blobs/{LARGE}")).body == APP.blobs[LARGE]
    assert not upstream.count(kind="blob")


async def test_offline_an_image_comes_from_the_bucket(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    upstream.clear()
    second = await machine("second", offline=True)
    await pulled(second)
    assert not upstream.requests


async def test_content_that_small_disks_evict_comes_from_the_bucket(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    proxy = await machine()
    await pulled(proxy)
    await filled(proxy, bucket)
    await proxy.app.content.evictor.evict(1 << 30)
    assert not proxy.held()
    upstream.clear()
    await pulled(proxy)
    assert not upstream.requests


# --- trouble: a pull works always


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try a bucket that has failed again soon."""
    monkeypatch.setattr(breaker, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.1)


async def test_nobody_listens_there(machine: Machine, upstream: FakeUpstream) -> None:
    proxy = await machine(bucket={"endpoint": f"http://127.0.0.1:{free_port()}"})
    await pulled(proxy)
    assert upstream.bodies(LARGE) == 1
    assert proxy.stats["cache"]["bucket_failures"]


async def test_the_credentials_are_refused(
    machine: Machine, tmp_path: Path, bucket: TestBucket
) -> None:
    (tmp_path / "wrong").write_text("wrong secret")
    proxy = await machine(bucket={"secret_access_key_file": str(tmp_path / "wrong")})
    await pulled(proxy)
    await until(lambda: "it answers 403 Forbidden" in proxy.log.getvalue())
    assert "wrong secret" not in proxy.log.getvalue()


async def test_there_is_no_such_bucket(machine: Machine) -> None:
    proxy = await machine(bucket={"url": "s3://nowhere/x"})
    await pulled(proxy)
    await until(lambda: "there is no such bucket" in proxy.log.getvalue())


async def test_it_answers_nothing(
    machine: Machine, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
    proxy = await machine()
    with bucket.server.stopped():
        async with asyncio.timeout(30):
            await pulled(proxy)
    assert "no answer within 0.3 seconds" in proxy.log.getvalue()


async def test_it_stops_in_the_middle_of_a_body(
    machine: Machine,
    upstream: FakeUpstream,
    bucket: TestBucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    second = await machine("second")
    assert (await second.get(f"/v2/app/manifests/{APP.digest}")).status == 200
    upstream.clear()
    monkeypatch.setattr(client, "STALL_SECONDS", 0.3)
    reads, whole = 0, client.ObjectReader.read

    async def stuck(self: client.ObjectReader) -> bytes:
        nonlocal reads
        reads += 1
        if reads > 4:
            async with self._client.bounded(0.1):
                await asyncio.sleep(60)
        return await whole(self)

    monkeypatch.setattr(client.ObjectReader, "read", stuck)
    answer = await second.get(f"/v2/app/blobs/{LARGE}")
    assert answer.body == APP.blobs[LARGE]
    (asked,) = [one for one in upstream.requests if one.kind == "blob" and one.method == "GET"]
    assert asked.headers["Range"].removeprefix("bytes=").removesuffix("-") != "0"


async def test_an_object_that_was_deleted_is_fetched_and_written_again(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    for digest in EVERYTHING:
        bucket.delete(digest)
    second = await machine("second")
    await pulled(second)
    assert upstream.bodies(LARGE) == 2
    await filled(second, bucket)


async def test_t02_wrong_small_objects_are_replaced_and_clients_do_not_notice(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    spoiled = EVERYTHING - {LARGE}
    for digest in spoiled:
        bucket.spoil(digest)
    second = await machine("second")
    await pulled(second)
    await until(lambda: not uploads(second))
    for digest in spoiled:
        assert content.digest(bucket.read(digest)) == digest
    assert_sound(second.storage)
    corrupt = second.app.events.recent([EventKind.CORRUPT])
    assert {event.subject for event in corrupt} == spoiled
    assert {event.data["where"] for event in corrupt} == {"bucket"}


async def test_t02_a_wrong_large_object_is_replaced_when_the_client_tries_again(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    bucket.spoil(LARGE)
    second = await machine("second")
    with pytest.raises(Exception, match="payload"):
        await second.get(f"/v2/app/blobs/{LARGE}")
    await second.settled()
    await pulled(second)
    await until(lambda: not uploads(second))
    assert content.digest(bucket.read(LARGE)) == LARGE
    assert second.stats["cache"]["content_mismatches"] == 1
    [corrupt] = second.app.events.recent([EventKind.CORRUPT])
    assert (corrupt.subject, corrupt.data["where"]) == (LARGE, "bucket")


async def test_a_foreign_object_gives_nothing_without_a_confirmation(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    bucket.put(LARGE, APP.blobs[LARGE])
    bucket.put(APP.digest, APP.manifest)
    proxy = await machine()
    assert (await proxy.get(f"/v2/org/none/blobs/{LARGE}")).status == 404
    assert (await proxy.get(f"/v2/app/manifests/{APP.digest}")).status == 200
    assert upstream.count("GET", "manifest") == 1


async def test_a_full_disk_passes_the_bucket_through(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    upstream.clear()
    second = await machine("second", storage={"max_size": 2 * 1024**2})
    await pulled(second)
    assert LARGE not in second.held()
    assert not upstream.bodies(LARGE)


async def test_a_registry_that_is_away_is_not_missed(
    machine: Machine, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    first = await machine()
    await pulled(first)
    await filled(first, bucket)
    upstream.fault(faults.hang_up())
    second = await machine("second")
    await pulled(second)


async def test_a_failure_of_the_registry_is_not_reported_as_absence(
    machine: Machine, upstream: FakeUpstream
) -> None:
    proxy = await machine()
    upstream.fault(faults.hang_up())
    for kind in ("blobs", "manifests"):
        for ask in (proxy.head, proxy.get):
            answer = await ask(f"/v2/app/{kind}/{LARGE}")
            assert answer.status == 502, (kind, ask)


# --- uploads


async def test_a_stop_waits_for_uploads(machine: Machine, bucket: TestBucket) -> None:
    proxy = await machine()
    await pulled(proxy)
    await proxy.close()
    assert {*bucket.objects()} >= EVERYTHING


async def test_what_was_not_uploaded_is_uploaded_by_the_next_start(
    machine: Machine, bucket: TestBucket, quick: None
) -> None:
    proxy = await machine(bucket={"endpoint": f"http://127.0.0.1:{free_port()}"})
    await pulled(proxy)
    await proxy.close()
    assert not bucket.objects()
    await filled(await machine(), bucket)


async def test_a_directory_that_is_older_than_the_bucket_is_copied_to_it(
    machine: Machine, bucket: TestBucket, upstream: FakeUpstream, tmp_path: Path, clock: Clock
) -> None:
    async with started(upstream, tmp_path / "first", clock, {}) as without:
        await pulled(without)
    await filled(await machine(), bucket)


async def test_after_a_complete_stop_nothing_is_looked_for(
    machine: Machine, bucket: TestBucket
) -> None:
    proxy = await machine()
    await pulled(proxy)
    await filled(proxy, bucket)
    await proxy.close()
    again = await machine()
    await pulled(again)
    assert "looking for content" not in again.log.getvalue()
    assert sum(counted(again).values()) == 0


async def test_an_upload_that_is_stopped_leaves_no_parts(
    machine: Machine, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_uploads, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(bucket_uploads, "RATE", 1_500_000)
    monkeypatch.setattr(client, "PART", 5 * 1024**2)
    proxy = await machine()
    await pulled(proxy)
    await until(lambda: bool(bucket.uploads()))
    await proxy.close()
    assert LARGE not in bucket.objects()
    assert bucket.uploads() == []


async def test_uploads_wait_while_the_bucket_is_away_and_then_go_on(
    machine: Machine, bucket: TestBucket, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_WRITE_SECONDS", 0.3)
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
    proxy = await machine()
    with bucket.server.stopped():
        await pulled(proxy)
        await until(lambda: proxy.stats["cache"]["bucket_failures"] > 3)
        for name in ("_WRITE_SECONDS", "ANSWER_SECONDS"):  # of a loaded machine
            monkeypatch.setattr(client, name, 60.0)
    await filled(proxy, bucket)
