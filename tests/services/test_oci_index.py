"""The names of held images in ``index.json``, and tags that are restored from it."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.core.manifests import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from proxy.core.names import Digest, Repo, Target, sha256
from proxy.core.records import Descriptor, TagRecord
from proxy.services import oci_index
from proxy.services.oci_index import Layout, pins_named
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.held import Held, begun, named, opened
from tests.running import Proxy, Start, until

REF = "org.opencontainers.image.ref.name"
OURS = "dev.millpond.image"
IMAGE = content.image(1)
INDEX = content.multi_platform(2)
DOCKER = content.image(3, docker=True)
LIST = content.multi_platform(4, docker=True)
FOREIGN = {
    "mediaType": OCI_MANIFEST,
    "digest": sha256(b"by hand"),
    "size": 7,
    "annotations": {REF: "mine"},
}


class Writes:
    """The shelf of a cache, which counts what is written to it."""

    def __init__(self, cache: Held) -> None:
        self._shelf = cache.shelf
        self.count = 0
        self.fails = False
        self.is_unreadable = False

    def read_index(self) -> bytes:
        if self.is_unreadable:
            raise OSError(5, "Input/output error")
        return self._shelf.read_index()

    def write_index(self, written: bytes) -> None:
        self.count += 1
        if self.fails:
            raise OSError(28, "No space left on device")
        self._shelf.write_index(written)


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


def document(root: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((root / "index.json").read_bytes())
    return read


def entries(root: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of ours by the names of their images."""
    return {entry["annotations"][OURS]: entry for entry in document(root)["manifests"]}


async def published(cache: Held, *pins: str) -> dict[str, dict[str, Any]]:
    await Layout(cache.content, cache.shelf, lambda: list(pins)).publish()
    return entries(cache.root)


async def test_oci_images_are_listed_unchanged(cache: Held) -> None:
    await cache.image("app:1", IMAGE)
    await cache.image("ghcr.io/team/app:2", INDEX)
    found = await published(cache)
    assert found == {
        "docker.io/library/app:1": {
            "mediaType": OCI_MANIFEST,
            "digest": IMAGE.digest,
            "size": len(IMAGE.manifest),
            "annotations": {
                OURS: "docker.io/library/app:1",
                REF: "docker.io/library/app:1",
            },
        },
        "ghcr.io/team/app:2": {
            "mediaType": OCI_INDEX,
            "digest": INDEX.digest,
            "size": len(INDEX.manifest),
            "annotations": {OURS: "ghcr.io/team/app:2", REF: "ghcr.io/team/app:2"},
        },
    }
    head = document(cache.root)
    assert (head["schemaVersion"], head["mediaType"]) == (2, OCI_INDEX)
    assert "annotations" not in head


async def test_a_docker_list_is_listed_as_an_oci_index(cache: Held) -> None:
    await cache.image("app:1", LIST)
    entry = (await published(cache))["docker.io/library/app:1"]
    assert (entry["mediaType"], entry["digest"]) == (OCI_INDEX, LIST.digest)
    assert entry["size"] == len(LIST.manifest)
    true = json.loads(entry["annotations"]["dev.millpond.image.manifest"])
    assert true == {"mediaType": DOCKER_LIST, "digest": LIST.digest, "size": len(LIST.manifest)}


async def test_a_docker_manifest_is_wrapped_into_an_index_that_is_held(cache: Held) -> None:
    await cache.image("app:1", DOCKER)
    await cache.image("app:2", DOCKER)
    found = await published(cache)
    for name in ("docker.io/library/app:1", "docker.io/library/app:2"):
        entry = found[name]
        assert entry["mediaType"] == OCI_INDEX
        assert entry["digest"] != DOCKER.digest
        body = cache.path(entry["digest"]).read_bytes()
        assert (content.digest(body), len(body)) == (entry["digest"], entry["size"])
        true = {
            "mediaType": DOCKER_MANIFEST,
            "digest": DOCKER.digest,
            "size": len(DOCKER.manifest),
        }
        assert json.loads(body) == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [true]}
        assert json.loads(entry["annotations"]["dev.millpond.image.manifest"]) == true
    assert len(await cache.on_disk()) == len(DOCKER.blobs) + 2, "one wrapper for both"
    await cache.evictor.evict(10**9)
    await cache.image("app:1", DOCKER)
    entry = (await published(cache))["docker.io/library/app:1"]
    assert cache.path(entry["digest"]).exists(), "made anew after it was evicted"


async def test_only_held_images_are_listed(cache: Held) -> None:
    await cache.image("app:held", IMAGE, but=tuple(IMAGE.blobs))
    await cache.image("app:gone", INDEX, but=(INDEX.digest,))
    assert "docker.io/library/app:gone" not in await published(cache)
    assert "docker.io/library/app:held" in await published(cache)


async def test_a_tag_that_points_to_an_image_of_another_repository_is_not_listed(
    cache: Held,
) -> None:
    await cache.image("app:1", IMAGE)
    descriptor = Descriptor(IMAGE.media_type, Digest(IMAGE.digest), len(IMAGE.manifest))
    target, tag = named("other:1")
    await cache.content.tags.set(target, tag, TagRecord(descriptor, cache.clock()))
    assert list(await published(cache)) == ["docker.io/library/app:1"]


@pytest.mark.parametrize(
    ("repo", "tag", "readable"),
    [
        ("library/app", "1.0-rc_1", "docker.io/library/app:1.0-rc_1"),
        ("team/a_b/c--d", "v1", "docker.io/team/a_b/c--d:v1"),
        ("library/app", "_x", f"docker.io/library/app@{IMAGE.digest}"),
        ("library/app", "x-", f"docker.io/library/app@{IMAGE.digest}"),
        ("library/app", "1..0", f"docker.io/library/app@{IMAGE.digest}"),
        ("library/app", "1.0_-x", f"docker.io/library/app@{IMAGE.digest}"),
        ("team/a__b", "v1", None),
        ("team/a---b", "v1", None),
    ],
)
async def test_names_that_readers_reject(
    cache: Held, repo: str, tag: str, readable: str | None
) -> None:
    await cache.image(f"{repo.removeprefix('library/')}:{tag}", IMAGE)
    [(name, entry)] = (await published(cache)).items()
    assert name == f"docker.io/{repo}:{tag}", "ours is always the true one"
    assert entry["annotations"].get(REF) == readable


async def test_an_image_without_a_tag_is_listed_by_its_digest(cache: Held) -> None:
    await cache.image("app:1", IMAGE)
    await cache.image("app:2", INDEX)
    target, tag = named("app:1")
    await cache.index.set_tag(target, tag, None)
    found = await published(cache)
    name = f"docker.io/library/app@{IMAGE.digest}"
    assert set(found) == {name, "docker.io/library/app:2"}, "no images that an index lists"
    assert found[name]["annotations"] == {OURS: name, REF: name}


async def test_schema_1_is_not_listed(cache: Held) -> None:
    old = content.schema1()
    digest = await cache.hold(old.manifest, old.media_type)
    target, tag = named("old:1")
    record = TagRecord(Descriptor(old.media_type, digest, len(old.manifest)), 1.0)
    await cache.index.set_tag(target, tag, record)
    assert await published(cache) == {}


async def test_entries_of_other_tools_stay(cache: Held) -> None:
    cache.shelf.write_index(json.dumps({"schemaVersion": 2, "manifests": [FOREIGN, 7]}).encode())
    await cache.image("app:1", IMAGE)
    names = Layout(cache.content, cache.shelf, list)
    await names.load()
    for _ in range(2):
        await names.publish()
        first, second, third = document(cache.root)["manifests"]
        assert (first, second) == (FOREIGN, 7)
        assert third["digest"] == IMAGE.digest
    assert await cache.index.repositories() == [Target("docker.io", Repo("library/app"))]


@pytest.mark.parametrize(
    "written", [b"", b"[]", b'{"manifests": 7}', b'{"manifests"', b"\xff", b"[" * 100_000]
)
async def test_an_invalid_index_is_replaced(cache: Held, written: bytes) -> None:
    cache.shelf.write_index(written)
    await cache.image("app:1", IMAGE)
    names = Layout(cache.content, cache.shelf, list)
    await names.load()
    assert await pins_named(cache.shelf) == []
    await names.publish()
    assert set(entries(cache.root)) == {"docker.io/library/app:1"}


async def test_no_index_at_all(cache: Held) -> None:
    (cache.root / "index.json").unlink()
    names = Layout(cache.content, cache.shelf, list)
    await names.load()
    assert await pins_named(cache.shelf) == []


async def test_invalid_entries_record_no_tags(cache: Held) -> None:
    right = {
        "mediaType": OCI_MANIFEST,
        "digest": IMAGE.digest,
        "size": 5,
        "annotations": {OURS: "docker.io/library/app:1"},
    }
    wrong = [
        right | {"annotations": {OURS: "docker.io/library/App:1"}},
        right | {"annotations": {OURS: "docker.io/library/app:-"}},
        right | {"annotations": {OURS: ""}},
        right | {"annotations": [OURS]},
        right | {"digest": "sha256:1"},
        right | {"size": "many"},
        right | {"annotations": right["annotations"] | {"dev.millpond.image.manifest": "{"}},  # type: ignore[operator]
        {"annotations": right["annotations"]},
        "text",
        None,
    ]
    cache.shelf.write_index(json.dumps({"schemaVersion": 2, "manifests": [*wrong, right]}).encode())
    await Layout(cache.content, cache.shelf, list).load()
    assert [one.name for one in await cache.index.search(None, 9)] == ["docker.io/library/app:1"]


async def test_tags_that_the_index_lost_are_restored(tmp_path: Path, clock: Clock) -> None:
    things = {"app:1": IMAGE, "app:2": INDEX, "app:3": DOCKER, "ghcr.io/x/a__b:4": LIST}
    before = {}
    async with opened(tmp_path, clock) as cache:
        for name, thing in things.items():
            await cache.image(name, thing)
        before = {one.name: one.record.descriptor for one in await cache.index.search(None, 9)}
        await published(cache)
    shutil.rmtree(tmp_path / "index")
    async with AsyncExitStack() as stack:
        cache = await begun(stack, tmp_path, clock)
        kept, _ = named("app:1")
        newer = Descriptor(OCI_MANIFEST, sha256(b"newer"), 5)
        await cache.index.set_tag(*named("app:1"), TagRecord(newer, clock()))
        await Layout(cache.content, cache.shelf, list).load()
        found = {one.name: one.record for one in await cache.index.search(None, 9)}
        assert found.pop(f"{kept}:1").descriptor == newer, "what has been learnt is better"
        before.pop(f"{kept}:1")
        assert {key: record.descriptor for key, record in found.items()} == before
        assert {record.checked_at for record in found.values()} == {0.0}, "to be checked"


async def test_pins_are_written_and_restored(cache: Held) -> None:
    await published(cache, "docker.io/library/app:1", "ghcr.io/x/y:2")
    assert document(cache.root)["annotations"] == {
        "dev.millpond.pins": "docker.io/library/app:1 ghcr.io/x/y:2"
    }
    assert await pins_named(cache.shelf) == ["docker.io/library/app:1", "ghcr.io/x/y:2"]


async def test_it_is_written_only_after_a_change(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_index, "PUBLISH_SECONDS", 0.001)
    monkeypatch.setattr(oci_index, "PAUSE_FACTOR", 0.0)
    shelf, pins = Writes(cache), list[str]()
    await cache.image("app:1", IMAGE)
    names = Layout(cache.content, shelf, lambda: list(pins))
    publishing = asyncio.create_task(names.publish_forever())
    await asyncio.sleep(0.02)
    assert shelf.count == 0, "not before what is there has been read"
    await names.load()
    await until(lambda: shelf.count == 1)
    for _ in range(5):
        cache.index.touch(Digest(IMAGE.digest))
        await cache.blocks(1, 1)
        target, tag = named("app:1")
        record = await cache.index.tag(target, tag)
        assert record is not None
        await cache.index.set_tag(target, tag, TagRecord(record.descriptor, cache.clock()))
        await asyncio.sleep(0.01)
    assert shelf.count == 1, "a use, a blob and a check change no name"
    await cache.image("app:2", INDEX)
    await until(lambda: "docker.io/library/app:2" in entries(cache.root))
    pins.append("docker.io/library/app:1")
    await until(lambda: "annotations" in document(cache.root))
    count = shelf.count
    await asyncio.sleep(0.02)
    assert shelf.count == count
    publishing.cancel()


async def test_nothing_is_written_before_the_old_file_was_read(cache: Held) -> None:
    """As at a stop right after the start: what the file says would be lost."""
    await cache.image("app:1", IMAGE)
    await published(cache)
    before = (cache.root / "index.json").read_bytes()
    target, tag = named("app:1")
    await cache.index.set_tag(target, tag, None)
    shelf = Writes(cache)
    names = Layout(cache.content, shelf, list)
    await names.publish_if_changed()
    assert (shelf.count, (cache.root / "index.json").read_bytes()) == (0, before)
    await names.load()
    assert await cache.index.tag(target, tag) is not None
    await names.publish_if_changed()
    assert set(entries(cache.root)) == {"docker.io/library/app:1"}


async def test_a_proxy_that_is_stopped_before_it_has_read_the_names_keeps_them(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start()
    await pulled(proxy, "app", IMAGE)
    await proxy.close()
    before = (proxy.storage / "index.json").read_bytes()
    assert b"docker.io/library/app:latest" in before
    shutil.rmtree(proxy.storage / "index")

    async def waits(_: Layout) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Layout, "load", waits)
    again = await start()
    assert (await again.get("/-/healthz")).status == 200
    await again.close()
    assert (proxy.storage / "index.json").read_bytes() == before


async def test_an_index_that_the_disk_refuses_is_not_overwritten(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_index, "PUBLISH_SECONDS", 0.01)
    (cache.root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [FOREIGN]}))
    await cache.image("app:1", IMAGE)
    shelf = Writes(cache)
    shelf.is_unreadable = True
    names = Layout(cache.content, shelf, list)
    await names.load()
    publishing = asyncio.create_task(names.publish_forever())
    await until(lambda: cache.counters.storage_errors > 3)
    assert shelf.count == 0
    shelf.is_unreadable = False
    await until(lambda: shelf.count == 1)
    assert FOREIGN in document(cache.root)["manifests"]
    publishing.cancel()


async def test_a_failed_write_is_retried(cache: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_index, "PUBLISH_SECONDS", 0.001)
    monkeypatch.setattr(oci_index, "PAUSE_FACTOR", 0.0)
    shelf = Writes(cache)
    shelf.fails = True
    names = Layout(cache.content, shelf, list)
    await names.load()
    await cache.image("app:1", IMAGE)
    publishing = asyncio.create_task(names.publish_forever())
    await until(lambda: cache.counters.storage_errors > 0)
    shelf.fails = False
    await until(lambda: "docker.io/library/app:1" in entries(cache.root))
    publishing.cancel()


async def pulled(proxy: Proxy, name: str, thing: content.Content) -> None:
    assert (await proxy.get(f"/v2/{name}/manifests/latest")).body == thing.manifest
    for digest in thing.manifests:
        assert (await proxy.get(f"/v2/{name}/manifests/{digest}")).status == 200
    for digest in thing.blobs:
        assert (await proxy.get(f"/v2/{name}/blobs/{digest}")).status == 200
    await proxy.settled()


async def test_a_lost_index_costs_neither_tags_nor_pins_nor_content(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_index, "PUBLISH_SECONDS", 0.01)
    things = {"app": INDEX, "tool": DOCKER}
    for name, thing in things.items():
        upstream.add(f"library/{name}", thing)
    proxy = await start()
    for name, thing in things.items():
        await pulled(proxy, name, thing)
    wanted = {f"docker.io/library/{name}:latest" for name in things}
    await until(lambda: wanted <= set(entries(proxy.storage)))
    files = len(proxy.held())
    await proxy.close()
    shutil.rmtree(proxy.storage / "index")
    proxy = await start()
    await until(lambda: proxy.stats["cache"]["files"] == files)
    tags = {one.name async for batch in proxy.app.content.tags.all() for one in batch}
    assert tags == wanted
    upstream.clear()
    for name, thing in things.items():
        await pulled(proxy, name, thing)
    assert not [request for request in upstream.requests if request.method == "GET"]
