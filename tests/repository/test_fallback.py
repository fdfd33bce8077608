"""A directory of another Millpond as a source: a disk that somebody carried in and mounted."""

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError

from proxy.core.errors import BlobUnknown
from proxy.core.names import Digest, Target
from proxy.core.sources import Piece, Place, Priority
from proxy.repository.origins import Origin
from proxy.storage import fallback
from tests.fakes import content, faults
from tests.fakes.clock import Clock
from tests.fakes.layout import blob_file, write_layout
from tests.fakes.upstream import FakeUpstream
from tests.leaks import descriptors
from tests.running import Proxy, Start, started, until

APP = content.image(1, layers=(3_000_000, 5000))
OTHER = content.image(2, layers=(2000,))
DOCKER = content.image(5, layers=(400,), docker=True)
PLATFORMS = [content.image(n, layers=(100,), platform=f"linux/{n}") for n in ("amd64", "arm64")]
LIST = content.index(*PLATFORMS)
LAYER = APP.layers[0]
NAMES = {
    "docker.io/library/app:latest": APP,
    "docker.io/library/many:1": LIST,
    "docker.io/secret/thing:1": OTHER,
}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(fallback, "RETRY_SECONDS", 0.0)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    write_layout(tmp_path / "mnt/usb", NAMES)
    return tmp_path / "mnt/usb"


def modified(root: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [root, *root.rglob("*")]
    }


async def pulled(proxy: Proxy, name: str, image: content.Image, ref: str = "latest") -> None:
    manifest = await proxy.get(f"/v2/{name}/manifests/{ref}")
    assert (manifest.status, manifest.body) == (200, image.manifest)
    assert manifest.headers["Content-Type"] == image.media_type
    for digest, data in image.blobs.items():
        answer = await proxy.get(f"/v2/{name}/blobs/{digest}")
        assert (answer.status, answer.body) == (200, data)


async def test_blobs_come_from_the_disk_before_the_registry(
    start: Start, upstream: FakeUpstream, disk: Path
) -> None:
    upstream.add("library/app", APP)
    proxy = await start(fallback=[str(disk)])
    await pulled(proxy, "app", APP)
    await proxy.settled()
    assert upstream.bodies(LAYER) == 0
    assert set(APP.blobs) <= proxy.held()
    shutil.rmtree(disk)
    await pulled(proxy, "app", APP)
    assert upstream.count("GET", "blob") == 0, "it is held now"


async def test_offline_a_tag_can_be_pulled_from_the_disk_and_stays(
    start: Start, upstream: FakeUpstream, disk: Path
) -> None:
    before = modified(disk)
    proxy = await start(offline=True, fallback=[str(disk)])
    assert (await proxy.head("/v2/app/manifests/latest")).headers[
        "Docker-Content-Digest"
    ] == APP.digest
    await pulled(proxy, "app", APP)
    await proxy.settled()
    assert modified(disk) == before
    shutil.rmtree(disk)
    await pulled(proxy, "app", APP)
    assert not upstream.requests


async def test_offline_an_image_held_for_one_repository_is_served_to_another_that_the_disk_names(
    start: Start, disk: Path
) -> None:
    write_layout(disk, NAMES | {"docker.io/library/twin:latest": APP})
    proxy = await start(offline=True, fallback=[str(disk)])
    for name in ("app", "twin"):
        await pulled(proxy, name, APP)
        await proxy.settled()


async def test_offline_a_blob_is_served_as_soon_as_the_disk_has_it(
    start: Start, disk: Path
) -> None:
    proxy = await start(offline=True, fallback=[str(disk)], freshness={"negative_ttl": "1h"})
    blob_file(disk, LAYER).unlink()
    assert (await proxy.get(f"/v2/app/blobs/{LAYER}")).status == 404
    blob_file(disk, LAYER).write_bytes(APP.blobs[LAYER])
    assert (await proxy.get(f"/v2/app/blobs/{LAYER}")).status == 200


async def test_offline_an_index_and_its_images(start: Start, disk: Path) -> None:
    proxy = await start(offline=True, fallback=[str(disk)])
    assert (await proxy.get("/v2/many/manifests/1")).body == LIST.manifest
    for digest, image in LIST.manifests.items():
        answer = await proxy.get(f"/v2/many/manifests/{digest}")
        assert (answer.status, answer.body) == (200, image.manifest)


async def test_offline_content_that_the_disk_lacks_is_unknown(start: Start, disk: Path) -> None:
    proxy = await start(offline=True, fallback=[str(disk)])
    for path in ("manifests/2", f"manifests/{OTHER.digest}", f"blobs/{OTHER.layers[0]}"):
        assert (await proxy.get(f"/v2/app/{path}")).status == 404
    blob_file(disk, APP.layers[1]).unlink()
    assert (await proxy.get("/v2/app/manifests/latest")).status == 404, "not whole"
    missing = await proxy.get(f"/v2/app/blobs/{APP.layers[1]}")
    assert (missing.status, str(disk).encode() in missing.body) == (404, False)


async def test_t33_the_disk_gives_a_repository_only_what_its_own_images_list(
    start: Start, upstream: FakeUpstream, disk: Path
) -> None:
    upstream.add("library/app", APP)
    proxy = await start(fallback=[str(disk)])
    [secret] = OTHER.layers
    assert (await proxy.get(f"/v2/app/blobs/{secret}")).status == 404
    assert (await proxy.head(f"/v2/app/blobs/{secret}")).status == 404
    assert (await proxy.get(f"/v2/app/manifests/{OTHER.digest}")).status == 404
    assert (await proxy.get(f"/v2/secret/thing/blobs/{secret}")).body == OTHER.blobs[secret]
    await proxy.settled()
    assert (await proxy.get(f"/v2/app/blobs/{secret}")).status == 404, "held, and still not linked"


async def test_a_tag_comes_from_the_disk_when_the_registry_fails(
    start: Start, upstream: FakeUpstream, disk: Path
) -> None:
    upstream.add("library/app", OTHER)
    proxy = await start(fallback=[str(disk)])
    upstream.fault(faults.status(503))
    answer = await proxy.get("/v2/app/manifests/latest")
    assert (answer.status, answer.body) == (200, APP.manifest)
    assert "fallback directory" in answer.headers["Warning"]
    await pulled(proxy, "app", APP)
    upstream.heal()
    assert (await proxy.get("/v2/app/manifests/latest")).body == OTHER.manifest, "asked at once"


async def test_an_available_registry_decides_where_tags_point(
    start: Start, upstream: FakeUpstream, disk: Path
) -> None:
    upstream.add("library/app", OTHER)
    proxy = await start(fallback=[str(disk)])
    assert (await proxy.get("/v2/app/manifests/latest")).body == OTHER.manifest
    assert (await proxy.get("/v2/many/manifests/1")).status == 404


async def test_t02_a_wrong_file_on_the_disk_is_served_once_without_its_end(
    start: Start, upstream: FakeUpstream, disk: Path
) -> None:
    upstream.add("library/app", APP)
    proxy = await start(fallback=[str(disk)])
    data = bytearray(APP.blobs[LAYER])
    data[5] ^= 1
    blob_file(disk, LAYER).write_bytes(data)
    with pytest.raises(ClientPayloadError):
        await proxy.get(f"/v2/app/blobs/{LAYER}")
    assert (await proxy.get(f"/v2/app/blobs/{LAYER}")).body == APP.blobs[LAYER]
    assert upstream.bodies(LAYER) == 1
    assert proxy.stats["cache"]["content_mismatches"] == 1


async def test_a_wrong_manifest_on_the_disk_is_not_used(
    start: Start, upstream: FakeUpstream, disk: Path
) -> None:
    upstream.add("library/app", APP)
    blob_file(disk, APP.digest).write_bytes(APP.manifest + b" ")
    proxy = await start(fallback=[str(disk)])
    await pulled(proxy, "app", APP, APP.digest)
    assert upstream.bodies(LAYER) == 1, "nor is what it lists"


async def test_a_disk_that_fails_in_the_middle_is_followed_by_the_registry(
    start: Start, upstream: FakeUpstream, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add("library/app", APP)
    proxy = await start(fallback=[str(disk)])
    pread, inode = os.pread, blob_file(disk, LAYER).stat().st_ino

    def failing(fd: int, size: int, start: int) -> bytes:
        if os.fstat(fd).st_ino == inode and start >= 2_000_000:
            raise OSError(5, "Input/output error")
        most = 2_000_000 - start if os.fstat(fd).st_ino == inode else size
        return pread(fd, min(size, most), start)

    monkeypatch.setattr(os, "pread", failing)
    assert (await proxy.get(f"/v2/app/blobs/{LAYER}")).body == APP.blobs[LAYER]
    [asked] = [r for r in upstream.requests if r.kind == "blob" and r.method == "GET"]
    assert asked.headers["Range"].startswith("bytes=2000000-")
    await proxy.settled()
    assert LAYER in proxy.held()


async def test_a_missing_directory_is_skipped_logged_once_and_used_once_it_exists(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.add("library/app", APP)
    proxy = await start(fallback=[str(tmp_path / "mnt/none")])
    for digest in APP.layers:
        assert (await proxy.get(f"/v2/app/blobs/{digest}")).status == 200
    assert proxy.log.getvalue().count("a fallback directory is skipped") == 1
    write_layout(tmp_path / "mnt/none", NAMES)
    [secret] = OTHER.layers
    assert (await proxy.get(f"/v2/secret/thing/blobs/{secret}")).body == OTHER.blobs[secret]
    assert proxy.log.getvalue().count("a fallback directory is used again") == 1


async def test_an_index_that_is_too_long_is_not_read(
    start: Start, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "MAX_INDEX", (disk / "index.json").stat().st_size - 1)
    proxy = await start(fallback=[str(disk)], offline=True)
    assert (await proxy.get("/v2/app/manifests/latest")).status == 404
    assert "index.json is too long" in proxy.log.getvalue()


class DeadMount:
    """Lets every ``open`` of a directory hang until it is released."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.hanging = 0
        self.released = threading.Event()
        self._open = os.open
        monkeypatch.setattr(os, "open", self.open)

    def open(
        self, path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        if path == self.path and not self.released.is_set():
            self.hanging += 1
            self.released.wait()
        return self._open(path, flags, mode, dir_fd=dir_fd)


@pytest.fixture
def dead(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeadMount]:
    monkeypatch.setattr(fallback, "HANG_SECONDS", 0.2)
    mount = DeadMount(disk, monkeypatch)
    yield mount
    mount.released.set()


async def test_a_directory_that_hangs_delays_one_request_and_is_used_when_it_answers(
    start: Start, upstream: FakeUpstream, dead: DeadMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "RETRY_SECONDS", 3600.0)
    upstream.add("library/app", APP)
    proxy = await start(fallback=[str(dead.path)])
    async with asyncio.timeout(60):
        for digest in APP.layers:
            assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == APP.blobs[digest]
        await pulled(proxy, "app", APP, APP.digest)
    assert dead.hanging == 1, "it is left alone"
    assert proxy.log.getvalue().count("a fallback directory is skipped") == 1
    await proxy.close()
    monkeypatch.setattr(fallback, "RETRY_SECONDS", 0.0)
    proxy = await start(fallback=[str(dead.path)])
    [other] = OTHER.layers
    async with asyncio.timeout(60):
        assert (await proxy.get(f"/v2/secret/thing/blobs/{other}")).status == 404
        assert dead.hanging == 2
        dead.released.set()
        monkeypatch.setattr(fallback, "HANG_SECONDS", 30.0)  # its thread may start late
        answer = await proxy.get(f"/v2/secret/thing/blobs/{other}", Cache_Control="no-cache")
    assert answer.body == OTHER.blobs[other]
    assert proxy.log.getvalue().count("a fallback directory is used again") == 1


async def test_a_directory_that_hangs_uses_a_bounded_number_of_threads(
    start: Start, upstream: FakeUpstream, dead: DeadMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "HANG_SECONDS", 0.001)
    monkeypatch.setattr(fallback, "_MAX_HANGING", 3)
    upstream.add("library/app", APP)
    proxy = await start(fallback=[str(dead.path)])
    async with asyncio.timeout(60):
        for _ in range(10):
            assert (await proxy.head(f"/v2/app/blobs/{LAYER}")).status == 200
            assert (await proxy.head(f"/v2/app/blobs/{APP.config}")).status == 200
    assert dead.hanging == 3


@pytest.mark.parametrize("offline", [False, True])
async def test_a_manifest_from_the_disk_begins_a_prefetch(
    start: Start, upstream: FakeUpstream, disk: Path, *, offline: bool
) -> None:
    proxy = await start(offline=offline, fallback=[str(disk)], prefetch={"idle_timeout": "60s"})
    answer = await proxy.get(f"/v2/app/manifests/{APP.digest}")
    assert (answer.status, answer.body) == (200, APP.manifest)
    said = "Millpond; fwd=uri-miss; stored"
    assert answer.headers["Cache-Status"] == said + ("; detail=offline" if offline else "")
    await until(lambda: set(APP.blobs) <= proxy.held())
    assert not upstream.count("GET")


async def test_what_is_no_file_is_not_there(
    start: Start, upstream: FakeUpstream, disk: Path
) -> None:
    upstream.add("library/app", APP)
    path = blob_file(disk, LAYER)
    path.unlink()
    os.mkfifo(path)
    proxy = await start(fallback=[str(disk)])
    answer = await proxy.get(f"/v2/app/blobs/{LAYER}")
    assert (answer.status, answer.body) == (200, APP.blobs[LAYER])
    assert upstream.bodies(LAYER) == 1


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256", "file", "index.json"])
async def test_no_link_leads_out_of_the_directory(
    start: Start, upstream: FakeUpstream, disk: Path, tmp_path: Path, part: str
) -> None:
    path = blob_file(disk, LAYER) if part == "file" else disk / part
    elsewhere = tmp_path / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    upstream.add("library/app", APP)
    proxy = await start(fallback=[str(disk)])
    assert (await proxy.get(f"/v2/app/blobs/{LAYER}")).body == APP.blobs[LAYER]
    assert upstream.bodies(LAYER) == 1


async def test_names_written_by_other_tools_are_read(start: Start, tmp_path: Path) -> None:
    name = "org.opencontainers.image.ref.name"
    write_layout(tmp_path / "mnt", NAMES, annotation=name)
    proxy = await start(offline=True, fallback=[str(tmp_path / "mnt")])
    await pulled(proxy, "app", APP)


async def test_no_file_stays_open_so_the_disk_can_be_unmounted(start: Start, disk: Path) -> None:
    proxy = await start(offline=True, fallback=[str(disk)])
    await pulled(proxy, "app", APP)
    await proxy.settled()
    assert not [path for path in descriptors().values() if path.startswith(str(disk))]


async def test_the_directory_of_a_real_cache_works_as_a_fallback(
    start: Start, upstream: FakeUpstream, tmp_path: Path, clock: Clock
) -> None:
    """What one Millpond has pulled, another without a network serves, tags and all."""
    upstream.add("library/app", APP)
    upstream.add("library/docker", DOCKER, "1")
    carried = tmp_path / "carried"
    async with started(upstream, carried, clock, {}) as first:
        await pulled(first, "app", APP)
        await pulled(first, "docker", DOCKER, "1")
        await first.settled()
    upstream.clear()
    second = await start(offline=True, fallback=[str(carried)])
    await pulled(second, "app", APP)
    await pulled(second, "docker", DOCKER, "1")
    assert not upstream.requests
    await second.settled()
    assert {*APP.blobs, *DOCKER.blobs} <= second.held()


class Shelf:
    """A source that is neither a registry nor a directory."""

    place = Place.DISK

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self._blobs = blobs

    async def open(self, target: Target, digest: Digest, offset: int, _: Priority) -> "ShelfBody":
        await self.blob_size(target, digest)
        return ShelfBody(self._blobs[digest], offset)

    async def blob_size(self, target: Target, digest: Digest) -> int:
        if digest not in self._blobs:
            raise BlobUnknown(f"{target}@{digest}")
        return len(self._blobs[digest])

    def reject(self, digest: Digest) -> None:
        raise AssertionError(digest)


class ShelfBody:
    is_public = False
    is_confirmed = True

    def __init__(self, data: bytes, offset: int) -> None:
        self.size = len(data)
        self._rest = Piece(offset, data[offset:])

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        yield self._rest

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("lacks", [0, 1])
async def test_offline_an_image_is_complete_if_any_other_source_has_its_blobs(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, lacks: int
) -> None:
    upstream.add("library/app", APP)
    online = await start()
    assert (await online.get("/v2/app/manifests/latest")).status == 200
    await online.close()
    shelf = Shelf(dict(list(APP.blobs.items())[lacks:]))
    monkeypatch.setattr(Origin, "local_sources", property(lambda _: [shelf]))
    offline = await start(offline=True)
    if lacks:
        assert (await offline.get("/v2/app/manifests/latest")).status == 404
    else:
        await pulled(offline, "app", APP)
