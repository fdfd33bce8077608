"""Small blobs in RAM: bounded, proven, and dropped with the held blob."""

from pathlib import Path

import pytest

from proxy.core.names import Digest
from proxy.repository.blobs import Blobs
from proxy.repository.small_blobs import SmallBlobs
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

SIZES = (100, 4096, 4097, 4000, 4090)
IMAGE = content.image(1, layers=SIZES)
BY_SIZE = dict(zip(SIZES, IMAGE.layers, strict=True))
MEMORY = {"blobs": 8192, "largest_blob": 4096}


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)


@pytest.fixture
def rams(monkeypatch: pytest.MonkeyPatch) -> list[SmallBlobs]:
    """Every cache of small blobs that is built."""
    built: list[SmallBlobs] = []
    construct = SmallBlobs.__init__

    def watched(self: SmallBlobs, blobs: Blobs, held: object, **limits: int) -> None:
        construct(self, blobs, held, **limits)  # type: ignore[arg-type]
        built.append(self)

    monkeypatch.setattr(SmallBlobs, "__init__", watched)
    return built


def path(size: int) -> str:
    return f"/v2/library/app/blobs/{BY_SIZE[size]}"


def lying(proxy: Proxy, size: int) -> Path:
    algorithm, _, encoded = BY_SIZE[size].partition(":")
    return proxy.storage / "blobs" / algorithm / encoded


async def hit(proxy: Proxy, size: int) -> None:
    for _ in range(2):
        got = await proxy.get(path(size))
        assert got.body == IMAGE.blobs[BY_SIZE[size]]
        await proxy.settled()


@pytest.mark.one_process  # looks into the RAM of the main process
async def test_small_blobs_in_ram_are_bounded(rams: list[SmallBlobs], start: Start) -> None:
    proxy = await start(memory=MEMORY)
    [ram] = rams
    for size in SIZES:
        await hit(proxy, size)
        assert ram._ram.currsize <= 8192
        kept = ram.in_ram(Digest(BY_SIZE[size]))
        assert (kept is not None) == (size <= 4096)
    assert ram.in_ram(Digest(BY_SIZE[4096])) is None
    assert sum(len(small.body) + 500 for small in ram._ram.values()) == ram._ram.currsize


async def test_a_blob_in_ram_is_served_without_its_file(start: Start) -> None:
    proxy = await start(memory=MEMORY)
    await hit(proxy, 100)
    lying(proxy, 100).unlink()
    whole = IMAGE.blobs[BY_SIZE[100]]
    got, part = await proxy.get(path(100)), await proxy.get(path(100), Range="bytes=10-19")
    assert (got.status, got.body) == (200, whole)
    assert (part.status, part.body) == (206, whole[10:20])
    assert got.headers["Cache-Status"] == part.headers["Cache-Status"] == "Millpond; hit"
    several = await proxy.get(path(100), Range="bytes=0-1,5-6")
    assert several.status == 206
    assert whole[5:7] in several.body


async def test_an_evicted_blob_is_dropped_from_ram(
    rams: list[SmallBlobs], start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(memory=MEMORY)
    await hit(proxy, 100)
    await proxy.app.content.evictor.discard([Digest(BY_SIZE[100])])
    upstream.remove("library/app")
    assert (await proxy.get(path(100))).status == 404
    assert rams[0].in_ram(Digest(BY_SIZE[100])) is None


async def test_changed_bytes_are_fetched_again(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(memory=MEMORY)
    await proxy.get(path(100))
    await proxy.settled()
    lying(proxy, 100).write_bytes(b"x" * 100)
    got = await proxy.get(path(100))
    assert got.body == IMAGE.blobs[BY_SIZE[100]]
    assert upstream.bodies(BY_SIZE[100]) == 2
    assert proxy.stats["cache"]["storage_errors"] == 1


async def test_an_evicted_manifest_is_fetched_again(proxy: Proxy, upstream: FakeUpstream) -> None:
    manifest = f"/v2/library/app/manifests/{IMAGE.digest}"
    for _ in range(2):
        assert (await proxy.get(manifest)).body == IMAGE.manifest
    await proxy.app.content.evictor.discard([Digest(IMAGE.digest)])
    assert (await proxy.get(manifest)).headers["Cache-Status"] == "Millpond; fwd=uri-miss; stored"
    assert (await proxy.get(manifest)).headers["Cache-Status"] == "Millpond; hit"


async def test_a_manifest_without_room_stays_in_ram(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(storage={"max_size": 1})
    manifest = f"/v2/library/app/manifests/{IMAGE.digest}"
    for _ in range(3):
        assert (await proxy.get(manifest)).body == IMAGE.manifest
    assert upstream.count("GET", ref=IMAGE.digest) == 1
    assert not proxy.held()
