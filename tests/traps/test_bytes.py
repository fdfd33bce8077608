"""Bytes: all of them, only the right ones, and never many at once in memory."""

import asyncio
import hashlib
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiohttp import ClientPayloadError, web

from tests.fakes import content
from tests.fakes.faults import body, chunked, digest_header, truncate
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

MIB = 1024 * 1024
BIG = content.image(3, layers=(3_000_000,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
PATH = f"/v2/app/blobs/{LAYER}"
LATEST = "/v2/app/manifests/latest"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", BIG)


@pytest.mark.parametrize("known", [True, False], ids=["size-known", "size-unknown"])
async def test_t02_a_login_page_is_not_a_layer(
    proxy: Proxy, upstream: FakeUpstream, *, known: bool
) -> None:
    if known:
        assert (await proxy.get(LATEST)).status == 200
    upstream.fault(body(b"<html>sign in</html>", "text/html"), kind="blob", times=1)
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)
    await proxy.settled()
    assert LAYER not in proxy.held()
    assert (await proxy.get(PATH)).body == DATA


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse every write behind `size` bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_t04_a_disk_that_refuses_fails_no_reader(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    with file_size_limit(2 * MIB):
        for _ in range(2):
            assert (await proxy.get(PATH)).body == DATA
    assert not proxy.held()
    assert not proxy.spooled()
    other = upstream.add_blob("library/app", DATA[1:])
    assert (await proxy.get(f"/v2/app/blobs/{other}")).body == DATA[1:]
    await proxy.settled()
    assert proxy.held() == {other}, "a disk that works again is used again"


async def test_t04_a_disk_that_refuses_in_the_middle_fails_no_reader(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fault(chunked(), kind="blob")
    with file_size_limit(2 * MIB):
        assert (await proxy.get(PATH)).body == DATA


async def test_t04_no_room_in_the_middle_fails_no_reader(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(storage={"max_size": "1MiB"})
    upstream.fault(chunked(), kind="blob")
    assert (await proxy.get(PATH)).body == DATA


class Fountain:
    """A registry with one blob that is made as it is sent, so that no test holds it."""

    def __init__(self, size: int) -> None:
        self.piece = content.blob(MIB)
        self.pieces = size // MIB
        state = hashlib.sha256()
        for _ in range(self.pieces):
            state.update(self.piece)
        self.digest = f"sha256:{state.hexdigest()}"

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = self.pieces * MIB
        await response.prepare(request)
        for _ in range(self.pieces):
            await response.write(self.piece)
        return response


@pytest.mark.parametrize("how", ["kept", "through", "unread"])
async def test_t08_a_blob_is_never_whole_in_memory(start: Start, how: str) -> None:
    fountain = Fountain(64 * MIB)
    runner = web.ServerRunner(web.Server(fountain.serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    room = {"max_size": "1MiB"} if how == "through" else {}
    proxy = await start(hub={"url": f"http://{host}:{port}"}, storage=room)
    tracemalloc.start()
    try:
        async with proxy.client.get(f"/v2/app/blobs/{fountain.digest}") as response:
            if how == "unread":
                await response.content.readexactly(1)
                await proxy.settled()
                assert proxy.held() == {fountain.digest}
            else:
                received = 0
                async for piece in response.content.iter_any():
                    received += len(piece)
                assert received == fountain.pieces * MIB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB
    await runner.cleanup()


@pytest.mark.parametrize("asked", ["bytes=0-99", "bytes=100-", "bytes=-1", "bytes=999999-"])
async def test_t09_a_manifest_is_never_sliced(
    proxy: Proxy, upstream: FakeUpstream, asked: str
) -> None:
    for path in (LATEST, LATEST, f"/v2/app/manifests/{BIG.digest}"):
        answer = await proxy.get(path, Range=asked)
        assert (answer.status, answer.body) == (200, BIG.manifest)
        assert "Accept-Ranges" not in answer.headers
    assert all("Range" not in request.headers for request in upstream.requests)


@pytest.mark.parametrize("at", [0, 1, 100])
async def test_t09_a_manifest_that_breaks_off_is_no_manifest(
    proxy: Proxy, upstream: FakeUpstream, at: int
) -> None:
    upstream.fault(truncate(at), digest_header(None), kind="manifest", times=1)
    assert (await proxy.get(LATEST)).status == 502
    assert not proxy.held()
    assert (await proxy.get(LATEST)).body == BIG.manifest


async def test_c06_what_was_evicted_comes_again_whole(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(storage={"max_size": "1MiB"})
    images = [content.image(n, layers=(150_000, 150_000)) for n in range(10, 18)]
    for image in images:
        upstream.add(f"library/app{image.digest[-6:]}", image)
    for image in [*images, *images]:
        name = f"/v2/app{image.digest[-6:]}"
        assert (await proxy.get(f"{name}/manifests/latest")).body == image.manifest
        got = await asyncio.gather(*(proxy.get(f"{name}/blobs/{digest}") for digest in image.blobs))
        assert [answer.body for answer in got] == list(image.blobs.values())
        await proxy.settled()
    assert proxy.stats["cache"]["evictions"] > len(images)
