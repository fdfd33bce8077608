"""Rows that clients and upstreams cause in the index, and its maximum size."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.core.names import Digest, Repo, Tag, Target, sha256
from proxy.core.records import BlobRecord, Descriptor, TagRecord
from proxy.index.sqlite import SqliteIndex
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.held import LIMIT, opened
from tests.running import Start

REPO = "library/app"
NGINX = Target("docker.io", Repo("library/nginx"))


def index_bytes(storage: Path) -> int:
    return sum(path.stat().st_size for path in (storage / "index").rglob("*") if path.is_file())


async def test_t54_questions_about_random_digests_leave_nothing_on_the_disk(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.add(REPO, content.image(1))
    proxy = await start()
    assert (await proxy.get(f"/v2/{REPO}/manifests/latest")).status == 200
    await proxy.close()
    before = index_bytes(proxy.storage)
    proxy = await start()
    for number in range(100):
        digest = content.digest(b"%d" % number)
        answer = await proxy.get(f"/v2/{REPO}/referrers/{digest}")
        assert json.loads(answer.body)["manifests"] == []
        assert (await proxy.get(f"/v2/{REPO}/manifests/{digest}")).status == 404
        assert (await proxy.get(f"/v2/{REPO}/manifests/v{number}")).status == 404
        assert (await proxy.head(f"/v2/{REPO}/blobs/{digest}")).status == 404
    await proxy.close()
    assert index_bytes(proxy.storage) - before < 25_000


async def test_t54_an_empty_list_is_remembered_all_the_same(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add(REPO, content.image(1))
    proxy = await start()
    subject = content.digest(b"made up")
    for _ in range(3):
        answer = await proxy.get(f"/v2/{REPO}/referrers/{subject}")
        assert json.loads(answer.body)["manifests"] == []
    assert upstream.count("GET", "referrers") == 1


async def test_t54_manifests_with_one_subject_do_not_fill_the_index(
    start: Start, upstream: FakeUpstream
) -> None:
    subject = content.image(1)
    upstream.add(REPO, subject)
    proxy = await start(storage={"max_size": "20MB"})
    assert (await proxy.get(f"/v2/{REPO}/manifests/latest")).status == 200
    for number in range(12):
        padding = {"padding": f"{number}" + "x" * 2_000_000, "small": "y" * 10}
        thing = content.artifact(subject, payload=b"%d" % number, annotations=padding)
        upstream.add(REPO, thing, f"a{number}")
        assert (await proxy.get(f"/v2/{REPO}/manifests/a{number}")).status == 200
    upstream.behaviour.referrers = False
    assert index_bytes(proxy.storage) < 8_000_000
    assert proxy.stats["cache"]["bytes"] <= 20_000_000
    assert (await proxy.get(f"/v2/{REPO}/referrers/{subject.digest}")).status == 200


async def test_t54_what_refers_to_a_manifest_is_kept_within_bounds(
    tmp_path: Path, clock: Clock
) -> None:
    async with SqliteIndex(tmp_path / "index", clock=clock, on_error=lambda: None) as index:
        subject = sha256(b"subject")
        for number in range(30):
            entry = {"digest": sha256(b"%d" % number), "annotations": {"a": "x" * 300_000}}
            await index.add_referrer(NGINX, subject, dict(entry))
        held = await index.referrers(NGINX, subject)
        assert len(json.dumps(held)) < 5_000_000
        assert held[-1]["digest"] == sha256(b"29"), "the oldest went"


async def flood(index: SqliteIndex, clock: Clock, digest: Digest, repo: str, number: int) -> None:
    """Learn random tags, as from an upstream that says yes to all."""
    target = Target("docker.io", Repo(repo))
    for count in range(number):
        record = TagRecord(Descriptor("a/b", digest, 5), clock())
        await index.set_tag(target, Tag(f"tag{count}-{'x' * 100}"), record)
        await index.link(target, [sha256(b"%d %a" % (count, repo))])
        clock.advance(1)


@pytest.mark.parametrize("is_held", [False, True])
async def test_t54_the_index_stays_inside_its_limit_and_the_oldest_rows_go(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, is_held: bool
) -> None:
    monkeypatch.setattr("proxy.index.sqlite.FLUSH_SECONDS", 0.02)
    limit = 500_000
    kept = sha256(b"kept")
    index = SqliteIndex(tmp_path / "index", clock=clock, on_error=lambda: None, max_bytes=limit)
    async with index:
        await index.set_blob(BlobRecord(kept, 5, "a/b", clock()))
        pointed = kept if is_held else sha256(b"elsewhere")
        for part in range(4):
            await flood(index, clock, pointed, f"library/app{part}", 150)
        last = TagRecord(Descriptor("a/b", kept, 5), clock())
        await index.set_tag(NGINX, Tag("last"), last)
        async with asyncio.timeout(60):
            while index.file_bytes > limit:
                await asyncio.sleep(0.01)
            while len(await index.tags(Target("docker.io", Repo("library/app0")))) == 150:
                await asyncio.sleep(0.01)
        assert await index.blob(kept) is not None, "rows of held content stay"
        assert await index.tag(NGINX, Tag("last")) == last, "the newest tags stay"


async def test_t54_made_up_links_go_before_tags_of_what_is_held(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upstream that says yes to every digest must not cost others their tags."""
    monkeypatch.setattr("proxy.index.sqlite.FLUSH_SECONDS", 0.02)
    limit = 500_000
    kept, evil = sha256(b"kept"), Target("evil", Repo("any/thing"))
    index = SqliteIndex(tmp_path / "index", clock=clock, on_error=lambda: None, max_bytes=limit)
    async with index:
        await index.set_blob(BlobRecord(kept, 5, "a/b", clock()))
        await index.link(NGINX, [kept])
        last = TagRecord(Descriptor("a/b", kept, 5), clock())
        await index.set_tag(NGINX, Tag("last"), last)
        await index.link(evil, [sha256(b"%d" % count) for count in range(30_000)])
        async with asyncio.timeout(60):
            while evil in await index.holders(sha256(b"1")):
                await asyncio.sleep(0.01)
            while index.file_bytes > limit:
                await asyncio.sleep(0.01)
        assert await index.tag(NGINX, Tag("last")) == last
        assert await index.linked(NGINX, kept)
        assert not await index.linked(evil, sha256(b"1")), "what the disk forgot, RAM forgets"


async def test_t54_the_index_counts_into_the_limit(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, clock) as cache:
        used: Any = cache.evictor.used
        assert used == 0, "what an empty index takes is free"
        monkeypatch.setattr("proxy.content.eviction.INDEX_IS_FREE", 0)
        assert cache.evictor.used == cache.index.file_bytes
        assert cache.index.file_bytes == index_bytes(tmp_path) > LIMIT // 10
