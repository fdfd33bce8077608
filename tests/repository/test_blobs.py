"""Blobs: once upstream, streamed to all, verified, kept inside the limit, or passed through."""

import asyncio
import os

import pytest
from aiohttp import ClientPayloadError, ClientSession

from tests.fakes import content
from tests.fakes.faults import announce, chunked, corrupt, truncate
from tests.fakes.upstream import FakeUpstream
from tests.leaks import opened
from tests.running import Answer, Proxy, Start, until

BIG = content.image(3, layers=(3_000_000,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
PATH = f"/v2/app/blobs/{LAYER}"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", BIG)


async def test_c04_many_clients_one_body_and_then_none(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    gate = upstream.hold(kind="blob")
    asked = [asyncio.create_task(proxy.get(PATH)) for _ in range(30)]
    await upstream.until(lambda: upstream.count("GET", "blob") == 1)
    await until(lambda: [one["readers"] for one in proxy.stats["downloads"]] == [30])
    gate.set()
    assert all(answer.body == DATA for answer in await asyncio.gather(*asked))
    await proxy.settled()
    assert (await proxy.get(PATH)).body == DATA
    assert upstream.bodies(LAYER) == 1
    assert len(upstream.requests) == 1
    assert proxy.held() == {LAYER}
    assert (proxy.numbers["misses"], proxy.numbers["joins"], proxy.numbers["hits"]) == (1, 29, 1)


async def test_c08_the_first_bytes_come_before_the_last_have_arrived(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    release = upstream.stall(1_000_000, kind="blob")
    async with proxy.client.get(PATH) as response:
        assert response.headers["Content-Length"] == str(len(DATA))
        assert await response.content.readexactly(900_000) == DATA[:900_000]
        [download] = proxy.stats["downloads"]
        assert 900_000 <= download["bytes"] <= 1_000_000
        assert (download["digest"], download["size"]) == (LAYER, len(DATA))
        assert len(proxy.spooled()) == 1
        release.set()
        assert await response.content.read() == DATA[900_000:]


async def test_t06_disconnected_clients_disturb_no_other_and_the_download_finishes(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    release = upstream.stall(1_000_000, kind="blob")
    async with ClientSession(f"http://{proxy.app.address}") as leaving:
        response = await leaving.get(PATH)
        await response.content.readexactly(1000)
        staying = asyncio.create_task(proxy.get(PATH))
        await asyncio.sleep(0.02)
        response.close()
    release.set()
    assert (await staying).body == DATA
    await proxy.settled()
    assert proxy.held() == {LAYER}


async def test_the_download_finishes_after_all_clients_disconnected(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    release = upstream.stall(1_000_000, kind="blob")
    async with ClientSession(f"http://{proxy.app.address}") as leaving:
        response = await leaving.get(PATH)
        response.close()
    release.set()
    await until(lambda: proxy.held() == {LAYER})
    await proxy.settled()
    assert not proxy.spooled()
    assert (await proxy.get(PATH)).body == DATA
    assert upstream.bodies(LAYER) == 1


@pytest.mark.parametrize("position", [0, -1, 1_500_000])
async def test_t02_a_blob_with_a_wrong_byte_is_neither_completed_nor_kept(
    proxy: Proxy, upstream: FakeUpstream, position: int
) -> None:
    upstream.fault(corrupt(position), kind="blob", times=1)
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)
    await proxy.settled()
    assert not proxy.held()
    assert not proxy.spooled()
    assert proxy.stats["cache"]["content_mismatches"] == 1
    assert (await proxy.get(PATH)).body == DATA


@pytest.mark.parametrize("length", [-5, 5])
async def test_t01_a_blob_of_wrong_length_is_neither_completed_nor_kept(
    proxy: Proxy, upstream: FakeUpstream, length: int
) -> None:
    upstream.fault(announce(length), kind="blob", times=1)
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)
    await proxy.settled()
    assert not proxy.held()
    assert not proxy.spooled()
    assert (await proxy.get(PATH)).body == DATA


async def test_a_body_without_announced_length(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.fault(chunked(), kind="blob")
    answer = await proxy.get(PATH)
    assert answer.body == DATA
    assert "Content-Length" not in answer.headers
    await proxy.settled()
    assert proxy.held() == {LAYER}


async def test_the_manifest_gives_a_length_that_upstream_does_not_announce(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    upstream.fault(chunked(), kind="blob")
    answer = await proxy.get(PATH)
    assert (answer.body, answer.headers["Content-Length"]) == (DATA, str(len(DATA)))


async def test_a_wrong_body_without_length_is_not_ended(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fault(chunked(), corrupt(-1), kind="blob")
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)


@pytest.mark.parametrize("size", [0, 1, 4096, 32768, 32769])
async def test_small_blobs(proxy: Proxy, upstream: FakeUpstream, size: int) -> None:
    data = content.blob(size, seed=size)
    digest = upstream.add_blob("library/app", data)
    for _ in range(2):
        answer = await proxy.get(f"/v2/app/blobs/{digest}")
        assert (answer.status, answer.body) == (200, data)
        assert answer.headers["Content-Length"] == str(size)
        await proxy.settled()


async def test_a_sha512_blob(proxy: Proxy, upstream: FakeUpstream) -> None:
    digest = upstream.add_blob("library/app", b"content", algorithm="sha512")
    for _ in range(2):
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == b"content"
        await proxy.settled()
    assert upstream.bodies(digest) == 1


async def test_t23_head_of_a_blob_asks_upstream_for_no_body(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    answer = await proxy.head(PATH)
    assert answer.headers["Content-Length"] == str(len(DATA))
    assert answer.headers["Docker-Content-Digest"] == LAYER
    assert upstream.bodies(LAYER) == 0
    assert (await proxy.head(f"/v2/app/blobs/{content.digest(b'none')}")).status == 404
    await proxy.get(PATH)
    await proxy.settled()
    upstream.clear()
    assert (await proxy.head(PATH)).headers["Content-Length"] == str(len(DATA))
    assert not upstream.requests


async def test_a_missing_blob_is_unknown_and_the_absence_is_cached(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    path = f"/v2/app/blobs/{content.digest(b'none')}"
    for _ in range(3):
        answer = await proxy.get(path)
        assert (answer.status, b'"BLOB_UNKNOWN"' in answer.body) == (404, True)
    assert len(upstream.requests) == 1


async def test_t25_every_fetch_asks_for_a_fresh_redirect(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.behaviour.redirects = {"blob"}
    proxy = await start()
    upstream.fault(truncate(1000), kind="data", times=1)
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)
    assert (await proxy.get(PATH)).body == DATA
    assert upstream.count("GET", "blob") == 2


async def test_t03_a_file_that_is_gone_or_short_is_fetched_again(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await proxy.get(PATH)
    await proxy.settled()
    file = proxy.storage / "blobs/sha256" / LAYER.removeprefix("sha256:")
    for spoil in (file.unlink, lambda: os.truncate(file, 0), lambda: os.truncate(file, 7)):
        spoil()
        answer = await proxy.get(PATH)
        assert (answer.status, answer.body) == (200, DATA)
        await proxy.settled()
    assert upstream.bodies(LAYER) == 4


async def test_c05_the_limit_holds_and_hot_content_stays(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(storage={"max_size": "1MiB"})
    digests = [upstream.add_blob("library/app", content.blob(100_000, seed=n)) for n in range(30)]

    def on_disk() -> int:
        files = [*proxy.spooled(), *(proxy.storage / "blobs").rglob("*")]
        return sum(file.stat().st_blocks * 512 for file in files if file.is_file())

    for number, digest in enumerate(digests):
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).status == 200
        assert (await proxy.get(f"/v2/app/blobs/{digests[0]}")).status == 200, number
        await proxy.settled()
        assert on_disk() <= 1024 * 1024
        # While the kernel writes a file back, its blocks may be missing in st_blocks for a moment.
        await until(lambda: proxy.stats["cache"]["bytes"] == on_disk())
    assert upstream.bodies(digests[0]) == 1, "used every time, so it stays"
    assert digests[1] not in proxy.held()
    cache = proxy.stats["cache"]
    assert cache["files"] == len(proxy.held())
    assert cache["evictions"] == len(digests) - cache["files"]


async def test_a_blob_that_does_not_fit_passes_through_verified(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(storage={"max_size": "1MiB"})
    for _ in range(2):
        answer = await proxy.get(PATH)
        assert (answer.body, answer.headers["Content-Length"]) == (DATA, str(len(DATA)))
    assert proxy.numbers["through"] == 2
    assert not proxy.held()
    assert not proxy.spooled()
    upstream.fault(corrupt(-1), kind="blob")
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)


async def test_a_size_in_a_manifest_decides_whether_a_blob_fits(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(storage={"max_size": "1MiB"})
    await proxy.get("/v2/app/manifests/latest")
    upstream.clear()
    assert (await proxy.get(PATH)).body == DATA
    assert len(upstream.requests) == 1


async def test_t33_a_download_is_not_joined_from_another_repository(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("org/else", content.image(99))
    release = upstream.stall(1_000_000, kind="blob", repository="library/app")
    asked = asyncio.create_task(proxy.get(PATH))
    await until(lambda: bool(proxy.spooled()))
    assert (await proxy.get(f"/v2/org/else/blobs/{LAYER}")).status == 404
    assert (await proxy.head(f"/v2/org/else/blobs/{LAYER}")).status == 404
    release.set()
    assert (await asked).body == DATA


async def test_a_head_leaves_no_file_open(proxy: Proxy) -> None:
    assert (await proxy.get(PATH)).body == DATA
    await proxy.settled()
    for _ in range(3):
        assert (await proxy.head(PATH)).headers["Content-Length"] == str(len(DATA))
    assert not opened(proxy)


async def test_another_repository_that_has_the_blob_joins_the_download(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("org/copy", BIG)
    release = upstream.stall(1_000_000, kind="blob", repository="library/app")
    asked = [asyncio.create_task(proxy.get(PATH))]
    await until(lambda: bool(proxy.spooled()))
    asked.append(asyncio.create_task(proxy.get(f"/v2/org/copy/blobs/{LAYER}")))
    await upstream.until(lambda: upstream.count("HEAD") == 1)
    release.set()
    answers: list[Answer] = await asyncio.gather(*asked)
    assert all(answer.body == DATA for answer in answers)
    assert upstream.bodies(LAYER) == 1


async def test_a_refusal_holds_for_one_repository_only(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    """A repository that does not hold a blob must not spoil it for one that does."""
    upstream.add("org/else", content.image(99))
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    gate = upstream.hold(kind="blob", repository="org/else")
    refused = asyncio.create_task(proxy.get(f"/v2/org/else/blobs/{LAYER}"))
    await upstream.until(lambda: upstream.count("GET", "blob") == 1)
    joined = asyncio.create_task(proxy.get(PATH))
    await proxy.caught_up()
    gate.set()
    assert (await refused).status == 404
    assert (await joined).body == DATA


async def test_a_killed_process_leaves_a_correct_cache(
    start: Start, upstream: FakeUpstream, proxy: Proxy
) -> None:
    """Rows without blobs are dropped; blobs without rows are proven, then adopted or deleted."""
    small = upstream.add_blob("library/app", b"small")
    await proxy.get(PATH)
    await proxy.get(f"/v2/app/blobs/{small}")
    await proxy.settled()
    await proxy.close()
    blobs = proxy.storage / "blobs/sha256"
    (blobs / small.removeprefix("sha256:")).unlink()
    adopted = content.digest(b"orphan")
    (blobs / adopted.removeprefix("sha256:")).write_bytes(b"orphan")
    (blobs / ("0" * 64)).write_bytes(b"a liar")
    again = await start()
    await until(lambda: again.held() == {LAYER, adopted})
    await until(lambda: again.stats["cache"]["files"] == 2)
    upstream.add_blob("library/app", b"orphan")
    upstream.clear()
    assert (await again.get(f"/v2/app/blobs/{adopted}")).body == b"orphan"
    assert [request.method for request in upstream.requests] == ["HEAD"]
    assert (await again.get(PATH)).body == DATA


async def test_numbers_agree_with_what_upstream_counted(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.behaviour.redirects = {"blob"}
    for _ in range(3):
        await proxy.get("/v2/app/manifests/latest")
        await proxy.get(PATH)
        await proxy.settled()
    await proxy.get("/v2/app/manifests/none")
    numbers = proxy.numbers
    sent = sum(r.sent for r in upstream.requests) + sum(r.sent for r in upstream.cdn_requests)
    assert numbers["upstream_requests"] == len(upstream.requests)
    assert numbers["token_requests"] == len(upstream.token_requests)
    assert numbers["bytes_from_upstream"] == sent
    assert numbers["requests"] == 7
    assert numbers["errors"] == {"MANIFEST_UNKNOWN": 1}
    body = len((await proxy.get("/v2/app/manifests/none")).body)
    expected = 3 * (len(BIG.manifest) + len(DATA)) + 2 * body
    assert proxy.numbers["bytes_to_clients"] == expected
    assert proxy.numbers["bytes_saved"] == expected - 2 * body - sent
    assert proxy.numbers["upstream_requests_saved"] == 6 - len(upstream.requests)
