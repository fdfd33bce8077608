"""Index and store brought into agreement, whatever a crash has left."""

import asyncio
import errno
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from diskcache import Cache, JSONDisk

from proxy.content import reconciler
from proxy.core.errors import StorageError
from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK, Descriptor, TagRecord
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


def lay(cache: Held, data: bytes, name: str | None = None) -> Digest:
    """Put a file into the store of which no row knows."""
    digest = name or sha256(data)
    cache.path(digest).write_bytes(data)
    return Digest(digest)


def set_aside(cache: Held) -> set[str]:
    return {path.name for path in (cache.root / "quarantine").iterdir()}


async def test_rows_whose_file_is_gone_are_dropped_and_the_others_stay(
    tmp_path: Path, clock: Clock
) -> None:
    ghost = Digest(IMAGE.layers[0])
    async with opened(tmp_path, clock) as cache:
        await cache.image("app:1", IMAGE)
        cache.path(ghost).unlink()
    async with opened(tmp_path, clock) as cache:
        assert await cache.index.blob(ghost) is not None
        await cache.content.reconciler.reconcile()
        assert await cache.index.blob(ghost) is None
        assert cache.index.usage().files == len(IMAGE.blobs)
        cache.path(IMAGE.config).unlink()
        await cache.content.reconciler.reconcile()
        assert await cache.index.blob(Digest(IMAGE.config)) is None, "also when it runs for long"
        assert cache.index.usage().files == len(IMAGE.blobs) - 1
    async with opened(tmp_path, clock) as cache:
        assert cache.index.usage().files == len(IMAGE.blobs) - 1


async def test_t05_files_without_a_row_are_adopted_with_what_they_list(cache: Held) -> None:
    for data in (*IMAGE.blobs.values(), IMAGE.manifest, INDEX.manifest):
        path = cache.path(lay(cache, data))
        os.utime(path, (1_600_000_000, 1_600_000_000))
    await cache.content.reconciler.reconcile()
    for digest, size in {key: len(data) for key, data in IMAGE.blobs.items()}.items():
        record = await cache.index.blob(Digest(digest))
        assert record is not None
        assert (record.size, record.media_type) == (size, None)
        assert record.used_at >= 1_600_000_000 - 1
    for thing, below in ((IMAGE, set(IMAGE.blobs)), (INDEX, {c.digest for c in INDEX.children})):
        record = await cache.index.blob(Digest(thing.digest))
        assert record is not None
        assert record.media_type == thing.media_type
        assert {child.digest for child in await cache.index.children(record.digest)} == below
    assert cache.evictor.used == (len(IMAGE.blobs) + 2) * BLOCK


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"{}", b'{"a": 1}', b"[]", b"\x1f\x8b" + bytes(5000), b'{"manifests": 7}'],
)
async def test_content_that_is_not_a_manifest_is_adopted_as_a_blob(
    cache: Held, data: bytes
) -> None:
    digest = lay(cache, data)
    await cache.content.reconciler.reconcile()
    record = await cache.index.blob(digest)
    assert record is not None
    assert (record.media_type, record.size) == (None, len(data))


async def test_a_manifest_without_a_type_is_adopted_by_its_shape(cache: Held) -> None:
    plain = content.untyped(1)
    digest = lay(cache, plain.manifest)
    await cache.content.reconciler.reconcile()
    record = await cache.index.blob(digest)
    assert record is not None
    assert record.media_type == content.OCI_MANIFEST


async def test_files_with_wrong_content_are_set_aside(cache: Held) -> None:
    bad = lay(cache, b"something else", sha256(b"what it says"))
    empty = lay(cache, b"", sha256(b"not empty"))
    good = lay(cache, b"good")
    stranger = cache.root / "blobs" / "sha256" / "notes.txt"
    stranger.write_text("by hand")
    await cache.content.reconciler.reconcile()
    assert await cache.on_disk() == {good}
    names = {digest.removeprefix("sha256:") for digest in (bad, empty)}
    assert set_aside(cache) == names | {f"{name}.json" for name in names}
    note = json.loads((cache.root / "quarantine" / f"{bad[7:]}.json").read_text())
    assert (note["digest"], note["reason"]) == (bad, "its bytes are not its name")
    assert cache.counters.corrupted == 2
    assert stranger.read_text() == "by hand", "what has no digest for a name is none of ours"


async def test_a_file_that_cannot_be_read_stops_nothing(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [lay(cache, str(number).encode()) for number in range(10)]
    pread, inode = os.pread, cache.path(digests[4]).stat().st_ino

    def fails(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", fails)
    await cache.content.reconciler.reconcile()
    assert {digest for digest in digests if await cache.index.blob(digest)} == {*digests} - {
        digests[4]
    }
    assert digests[4].removeprefix("sha256:") in set_aside(cache)
    assert cache.evictor.used == 9 * BLOCK + 2 * BLOCK


async def test_a_row_whose_file_has_become_a_link_stops_nothing(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock) as cache:
        await cache.image("app:1", IMAGE)
        (tmp_path / "secret").write_text("secret")
        cache.path(IMAGE.layers[0]).unlink()
        cache.path(IMAGE.layers[0]).symlink_to(tmp_path / "secret")
        cache.path(IMAGE.layers[1]).unlink()
        orphan = lay(cache, b"orphan")
    async with opened(tmp_path, clock) as cache:
        await cache.content.reconciler.reconcile()
        assert await cache.index.blob(orphan) is not None
        assert await cache.index.blob(Digest(IMAGE.layers[1])) is None


async def test_content_that_arrives_during_the_scan_stays(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download renames its file into the store a moment before the index knows of it."""
    orphans = [lay(cache, str(number).encode()) for number in range(3)]
    set_blob, came = cache.index.set_blob, set[str]()

    async def also(record: object, children: object = ()) -> None:
        await set_blob(record, children)  # type: ignore[arg-type]
        if not came:
            came.add("")
            came.add(await cache.blocks(1))
            await cache.evictor.evict(1)

    monkeypatch.setattr(cache.index, "set_blob", also)
    await cache.content.reconciler.reconcile()
    held = {d for d in await cache.on_disk() if await cache.index.blob(Digest(d))}
    assert held == await cache.on_disk()
    assert len(held) >= len(orphans)
    assert cache.evictor.used == cache.index.usage().disk_bytes
    assert not set_aside(cache)


async def test_content_fetched_again_while_its_bad_file_is_hashed_is_held(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lay(cache, b"wrong", sha256(b"right"))
    prove, downloads = reconciler.prove, list[asyncio.Task[Digest]]()

    async def slow(*args: Any) -> Any:
        found = await prove(*args)
        downloads.append(asyncio.create_task(cache.hold(b"right")))
        await asyncio.wait(downloads, timeout=0.5)  # it must wait for the bad file
        return found

    monkeypatch.setattr(reconciler, "prove", slow)
    await cache.content.reconciler.reconcile()
    await asyncio.gather(*downloads)
    assert await cache.index.blob(digest) is not None
    assert cache.path(digest).read_bytes() == b"right"
    [quarantined] = [path for path in (cache.root / "quarantine").iterdir() if not path.suffix]
    assert quarantined.read_bytes() == b"wrong"
    assert cache.evictor.used == BLOCK + cache.store.quarantine.bytes


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
        async with asyncio.timeout(10):
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
    async with asyncio.timeout(10):
        while (await proxy.get("/v2/library/app/manifests/latest")).status != 200:
            await asyncio.sleep(0.01)
    for digest, data in IMAGE.blobs.items():
        assert (await proxy.get(f"/v2/library/app/blobs/{digest}")).body == data


async def test_a_file_that_was_not_adopted_is_counted_once_when_fetched_again(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"some bytes"
    lay(cache, data)

    def fails(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fails)
        await cache.content.reconciler.reconcile()
    assert cache.evictor.used == BLOCK
    await cache.hold(data)
    assert cache.evictor.used == BLOCK, "the new file replaces the old one"
    await cache.evictor.evict(BLOCK)
    assert cache.evictor.used == 0


async def test_content_that_lands_has_a_row_before_it_can_be_taken_for_an_orphan(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"the right bytes"
    digest = sha256(data)
    visible, go_on, proven = asyncio.Event(), asyncio.Event(), list[Digest]()
    put = cache.store.put

    async def put_then_wait(digest: Digest, spool: Any) -> None:
        await put(digest, spool)
        visible.set()
        await go_on.wait()

    async def prove(file: Any, digest: Digest) -> None:
        proven.append(digest)

    monkeypatch.setattr(reconciler, "prove", prove)
    monkeypatch.setattr(cache.store, "put", put_then_wait)
    holding = asyncio.create_task(cache.hold(data))
    await visible.wait()
    finding = asyncio.create_task(cache.content.find(digest))
    for _ in range(20):  # steps of the loop, in which the file without a row could be taken
        await asyncio.sleep(0)
    go_on.set()
    await holding
    record = await finding
    assert record is not None
    assert record.size == len(data)
    assert proven == []
    assert set_aside(cache) == set()
    assert await cache.on_disk() == {digest}
    assert cache.evictor.used == BLOCK


async def test_a_file_that_vanishes_before_it_is_adopted_counts_no_more(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lay(cache, b"gone in a moment")
    counted: list[int] = []
    found = cache.evictor.found

    def vanish(orphans: int) -> None:
        found(orphans)
        counted.append(cache.evictor.used)
        cache.path(digest).unlink()

    monkeypatch.setattr(cache.evictor, "found", vanish)
    await cache.content.reconciler.reconcile()
    assert counted == [BLOCK]
    assert cache.evictor.used == 0


async def test_a_file_that_could_not_be_opened_is_adopted_by_the_next_comparison(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lay(cache, b"not readable at first")

    def refuse(digest: Digest) -> None:
        raise StorageError(f"{digest} cannot be opened")

    with monkeypatch.context() as refusing:
        refusing.setattr(cache.store, "open", refuse)
        await cache.content.reconciler.reconcile()
    assert await cache.index.blob(digest) is None
    assert cache.evictor.used == BLOCK, "it takes its room all the same"
    await cache.content.reconciler.reconcile()
    assert await cache.index.blob(digest) is not None
    assert cache.evictor.used == BLOCK


async def test_a_file_whose_row_was_lost_is_found_before_all_files_are_read_again(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.content.reconciler.reconcile()
    digest = lay(cache, b"its row was in the damaged file")
    assert await cache.content.find(digest) is None, "all files are known to have a row"
    monkeypatch.setattr(type(cache.index), "damaged", "where the damaged file lies")
    found: list[bool] = []
    scan = cache.store.scan

    async def scan_in_the_end() -> Any:
        found.append(await cache.content.find(digest) is not None)
        async for batch in scan():
            yield batch

    monkeypatch.setattr(cache.store, "scan", scan_in_the_end)
    await cache.content.reconciler.reconcile()
    assert found == [True]
    assert cache.evictor.used == BLOCK


async def test_an_orphan_is_counted_once_while_it_is_adopted(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = lay(cache, b"an orphan")
    counted = []
    set_blob = cache.index.set_blob

    async def watched(*row: Any) -> None:
        setting = asyncio.create_task(set_blob(*row))
        await asyncio.sleep(0)
        counted.append(cache.evictor.used)
        await setting

    monkeypatch.setattr(cache.index, "set_blob", watched)
    await cache.content.reconciler.reconcile()
    assert await cache.index.blob(digest) is not None
    assert counted == [BLOCK]


async def test_a_second_copy_counts_until_its_readers_have_left(cache: Held) -> None:
    data = b"{}".ljust(BLOCK)
    digest = await cache.hold(data)
    room = await cache.evictor.arrival("docker.io", len(data))
    await room.grow(len(data))
    spool = await cache.store.spool(digest, None)
    spool.write(data, 0)
    descriptor = Descriptor(content.OCI_MANIFEST, digest, len(data))
    await cache.content.adopt(room, spool, descriptor)
    assert cache.evictor.used == 2 * BLOCK, "the file is there already, so the spool is no blob"
    spool.discard()
    spool.close()
    room.release()
    assert cache.evictor.used == BLOCK


async def test_content_that_arrives_during_the_scan_is_no_orphan(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"on its way"
    lay(cache, data)
    scan, found = cache.store.scan, cache.evictor.found
    counted = []

    async def then_hold() -> AsyncIterator[Any]:
        async for batch in scan():
            yield batch
        monkeypatch.setattr(cache.store, "scan", scan)
        await cache.hold(data)

    def watched(orphans: int) -> None:
        found(orphans)
        counted.append(cache.evictor.used)

    monkeypatch.setattr(cache.store, "scan", then_hold)
    monkeypatch.setattr(cache.evictor, "found", watched)
    await cache.content.reconciler.reconcile()
    assert set(counted) == {BLOCK}
