"""What the daily comparison forgets; older layouts, and an index that is lost."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from diskcache import Cache, JSONDisk

from proxy.core.names import Digest, sha256
from proxy.core.records import TagRecord
from proxy.services import oci_index
from proxy.services.reconcile import FORGET_SECONDS, prune
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.held import Held, named, opened
from tests.running import Start, until

IMAGE = content.image(1)
INDEX = content.multi_platform(2)


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


async def test_unneeded_rows_are_forgotten_after_a_long_time(cache: Held) -> None:
    hub, kept = named("app:kept")
    await cache.image("app:kept", IMAGE)
    lost = content.image(9)
    target, gone = named("app:gone")
    await cache.image("app:gone", lost, but=(lost.digest, *lost.blobs))
    for thing in (IMAGE, lost):
        await cache.index.add_referrer(hub, Digest(thing.digest), {"digest": sha256(b"x")})
    cache.clock.advance(FORGET_SECONDS - 100)
    await prune(cache.content)
    assert await cache.index.tags(hub) == [gone, kept], "not yet"
    cache.clock.advance(200)
    await prune(cache.content)
    assert await cache.index.tags(hub) == [kept]
    assert not await cache.index.history(target, gone)
    assert await cache.index.referrers(hub, Digest(IMAGE.digest))
    assert not await cache.index.referrers(hub, Digest(lost.digest))


async def test_unneeded_links_are_forgotten(tmp_path: Path, clock: Clock) -> None:
    lost = content.image(9)
    hub, _ = named("app:1")
    async with opened(tmp_path, clock) as cache:
        await cache.image("app:1", IMAGE, but=(IMAGE.layers[0],))
        await cache.index.link(hub, map(Digest, lost.blobs))
    async with opened(tmp_path, clock) as cache:
        clock.advance(FORGET_SECONDS + 1)
        await prune(cache.content)
        for digest in lost.blobs:
            assert not await cache.index.linked(hub, Digest(digest))
        for digest in IMAGE.blobs:
            assert await cache.index.linked(hub, Digest(digest)), "listed by what is held"


async def test_a_tag_that_is_still_confirmed_is_not_forgotten(cache: Held) -> None:
    target, tag = named("app:1")
    await cache.image("app:1", IMAGE, but=(IMAGE.digest, *IMAGE.blobs))
    record = await cache.index.tag(target, tag)
    assert record is not None
    cache.clock.advance(2 * FORGET_SECONDS)
    await cache.index.set_tag(target, tag, TagRecord(record.descriptor, cache.clock()))
    await prune(cache.content)
    assert await cache.index.tag(target, tag) is not None


def lay_out_as_before(root: Path, images: dict[str, content.Content]) -> None:
    """Write a directory as the first version had it: rows do not say what a manifest lists."""
    (root / "blobs/sha256").mkdir(parents=True)
    (root / "spool").mkdir()
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (root / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    tables = {
        name: Cache(
            str(root / "index" / name),
            disk=JSONDisk,
            disk_compress_level=0,
            disk_min_file_size=1 << 30,
            eviction_policy="none",
            cull_limit=0,
        )
        for name in ("tags", "links", "blobs", "referrers")
    }
    for name, thing in images.items():
        repo = f"library/{name}"
        about = [thing.media_type, thing.digest, len(thing.manifest)]
        seen = [[thing.digest, 1.0, 1_700_000_000.0]]
        tables["tags"].set(["docker.io", repo, "latest"], [[*about, 1_700_000_000.0], seen])
        parts = {
            digest: (each.manifest, each.media_type) for digest, each in thing.manifests.items()
        }
        blobs = {digest: (data, None) for digest, data in thing.blobs.items()}
        for digest, (data, media_type) in (parts | blobs).items():
            (root / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(data)
            tables["blobs"].set(digest, [len(data), media_type, 1_700_000_000.0])
            tables["links"].set(digest, [["docker.io", repo]])
    for table in tables.values():
        table.close()


async def test_an_older_layout_is_migrated_and_serves_without_upstream(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    lay_out_as_before(tmp_path / "cache", {"app": IMAGE, "many": INDEX})
    await upstream.stop()
    proxy = await start()
    assert json.loads((proxy.storage / "millpond.json").read_text()) == {"layout": 3}
    for _ in range(2):
        for name, thing in (("app", IMAGE), ("many", INDEX)):
            answer = await proxy.get(f"/v2/{name}/manifests/latest")
            assert (answer.status, answer.body) == (200, thing.manifest)
            for digest, data in thing.blobs.items():
                assert (await proxy.get(f"/v2/{name}/blobs/{digest}")).body == data
        listed = proxy.app.content.graph.children
        async with asyncio.timeout(60):
            for digest in (INDEX.digest, IMAGE.digest, *INDEX.manifests):
                while await listed(Digest(digest)) is None:
                    await asyncio.sleep(0.002)
        children = await listed(Digest(INDEX.digest))
        assert set(children or ()) == {child.digest for child in INDEX.children}
        assert set(await listed(Digest(IMAGE.digest)) or ()) == set(IMAGE.blobs)
        files = len(IMAGE.blobs) + 1 + len(INDEX.blobs) + len(INDEX.manifests)
        assert proxy.stats["cache"]["files"] == files
        await proxy.close()
        proxy = await start()
    for digest in (INDEX.digest, IMAGE.digest):
        assert await proxy.app.content.graph.children(Digest(digest)), "found out once"


async def test_a_newer_layout_is_refused_and_left_alone(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    lay_out_as_before(root, {"app": IMAGE})
    (root / "millpond.json").write_text('{"layout": 99}')
    (root / "spool/left").write_text("by the newer one")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(Exception, match="written by a newer Millpond"):
        await start()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


async def test_after_the_index_is_lost_an_image_is_complete_under_its_name(
    start: Start, upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_index, "PUBLISH_SECONDS", 0.01)
    upstream.add("library/app", IMAGE)
    proxy = await start()
    for path in ("manifests/latest", *(f"blobs/{digest}" for digest in IMAGE.blobs)):
        assert (await proxy.get(f"/v2/library/app/{path}")).status == 200
    await until(lambda: "library/app:latest" in (proxy.storage / "index.json").read_text())
    await proxy.close()
    shutil.rmtree(tmp_path / "cache/index")
    proxy = await start(offline=True)
    async with asyncio.timeout(60):
        while (await proxy.get("/v2/library/app/manifests/latest")).status != 200:
            await asyncio.sleep(0.01)
    for digest, data in IMAGE.blobs.items():
        assert (await proxy.get(f"/v2/library/app/blobs/{digest}")).body == data
