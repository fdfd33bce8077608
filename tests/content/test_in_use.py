"""Images in use: their sources, their expiry, and their protection."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.content import in_use
from proxy.core.errors import RequestInvalid
from proxy.core.names import Digest
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.held import Held, opened
from tests.running import Start, until

ONE, TWO = content.image(1), content.image(2)
HEX = "0123456789abcdef" * 4
HUB = "docker.io/library"


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path / "cache", clock) as held:
        yield held


def tree(*images: content.Content) -> set[str]:
    return {digest for image in images for digest in (*image.manifests, *image.blobs)}


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        # docker ps --format '{{.Image}}', and with --no-trunc
        ("nginx", f"{HUB}/nginx:latest"),
        ("nginx:1.27", f"{HUB}/nginx:1.27"),
        ("bitnami/redis:7", "docker.io/bitnami/redis:7"),
        (f"sha256:{HEX}", f"sha256:{HEX}"),
        # docker images --digests, crictl images
        (f"nginx@sha256:{HEX}", f"{HUB}/nginx@sha256:{HEX}"),
        (f"docker.io/library/nginx:1.27@sha256:{HEX}", f"{HUB}/nginx@sha256:{HEX}"),
        ("ghcr.io/team/tool:v3", "ghcr.io/team/tool:v3"),
        # Kubernetes: .status.containerStatuses[].imageID, by several runtimes
        (f"docker-pullable://nginx@sha256:{HEX}", f"{HUB}/nginx@sha256:{HEX}"),
        (f"docker://sha256:{HEX}", f"sha256:{HEX}"),
        (f"docker.io/library/nginx@sha256:{HEX}", f"{HUB}/nginx@sha256:{HEX}"),
        # as one pulls from Millpond by its own address
        ("localhost:5000/library/nginx:1", f"{HUB}/nginx:1"),
        ("10.0.0.7:5000/nginx:1", f"{HUB}/nginx:1"),
        ("localhost/nginx:1", f"{HUB}/nginx:1"),
        ("cache.example.com:5000/ghcr.io/team/tool:v3", "ghcr.io/team/tool:v3"),
        ("[::1]:5000/nginx:1", f"{HUB}/nginx:1"),
        # an upstream's own port is no port of ours
        ("lab:5000/x:1", "lab:5000/x:1"),
    ],
)
async def test_names_as_those_who_run_images_print_them(cache: Held, line: str, meant: str) -> None:
    feeds = cache.feeds()
    told = await feeds.report("node1", f"  {line}   # a pod\n", 60)
    assert told.not_understood == []
    assert [str(image) for image in feeds.images()] == [meant]


async def test_what_is_no_image_is_told_by_its_line_and_the_others_count(cache: Held) -> None:
    feeds = cache.feeds()
    lines = ["# running now", "nginx", "", "Bad Name", "example.com/x:1", "sha256:123", "app:1"]
    told = await feeds.report("node1", "\n".join(lines), 60)
    assert [problem.partition(":")[0] for problem in told.not_understood] == [
        "line 4",
        "line 5",
        "line 6",
    ]
    assert "'example.com' is not a configured upstream" in told.not_understood[1]
    assert told.feed.named == 2
    assert [str(image) for image in feeds.images()] == [f"{HUB}/nginx:latest", f"{HUB}/app:1"]


async def test_what_is_in_use_stays_and_what_is_no_longer_goes(cache: Held) -> None:
    await cache.image("app:1", ONE)
    await cache.image("app:2", TWO)
    feeds = cache.feeds()
    pins = cache.pins(feeds=feeds)
    await feeds.report("node1", "app:1", 60)
    assert await pins.protected() == tree(ONE)
    await feeds.report("node2", f"app@{TWO.digest}", 30)
    assert await pins.protected() == tree(ONE, TWO)
    assert await pins.pinned() == set(), "what is in use is not pinned"
    cache.clock.advance(31)
    assert await pins.protected() == tree(ONE), "what node2 said has ended"
    await feeds.report("node1", "app:2", 60)
    assert await pins.protected() == tree(TWO), "a new list replaces the old one"
    await feeds.report("node1", "", 60)
    assert await pins.protected() == set()


async def test_t37_c06_what_a_tag_pointed_to_when_a_container_was_started_is_in_use(
    cache: Held,
) -> None:
    await cache.image("app:1", ONE)
    await cache.image("app:1", TWO)
    feeds = cache.feeds()
    pins = cache.pins(feeds=feeds)
    told = await feeds.report("node1", "app:1", 60)
    assert await pins.protected() == tree(ONE, TWO)
    assert told.feed.named == 1
    cache.protected = set(await pins.protected())
    await cache.evictor.evict(10**9)
    assert await cache.on_disk() == tree(ONE, TWO)


async def test_more_than_can_be_right_is_refused(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "MAX_IMAGES", 3)
    monkeypatch.setattr(in_use, "MAX_SOURCES", 2)
    feeds = cache.feeds()
    with pytest.raises(RequestInvalid, match="at most 3 lines, from 2 sources"):
        await feeds.report("a", "x\n" * 4, 60)
    await feeds.report("a", "x\n" * 3, 60)
    await feeds.report("b", "x", 5)
    with pytest.raises(RequestInvalid):
        await feeds.report("c", "x", 60)
    await feeds.report("a", "y", 60)  # whoever is known may go on
    cache.clock.advance(10)
    await feeds.report("c", "x", 60)  # one of them has ended
    assert [feed.source for feed in feeds.all()] == ["a", "c"]


async def test_what_is_in_use_is_known_after_a_restart_until_it_ends(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock) as cache:
        feeds = cache.feeds()
        await feeds.report("node1", f"app:1\nsha256:{HEX}", 60)
        await feeds.report("node2", "app:2", 10)
        await feeds.save()
    clock.advance(20)
    async with opened(tmp_path, clock) as cache:
        feeds = cache.feeds()
        await feeds.load()
        [feed] = feeds.all()
        assert (feed.source, feed.named, feed.expires_at) == ("node1", 2, clock() + 40)
        assert [str(image) for image in feeds.images()] == [f"{HUB}/app:1", f"sha256:{HEX}"]
        clock.advance(40)
        assert feeds.all() == []
        await feeds.save()
        assert await cache.index.note("in use") == []


async def test_what_was_noted_and_cannot_be_read_is_left_out(cache: Held) -> None:
    rows = [["a", ["Bad Name"], 1, None], "rubbish", [1], ["b", ["app:1"], 1, None]]
    await cache.index.set_note("in use", rows)
    feeds = cache.feeds()
    await feeds.load()
    assert [feed.source for feed in feeds.all()] == ["b"]
    await cache.index.set_note("in use", {"not": "a list"})
    await cache.feeds().load()


def write(file: Path, text: bytes) -> None:
    """Replace a file, with another time of modification than any before."""
    before = file.stat().st_mtime_ns if file.exists() else 1_700_000_000_000_000_000
    file.write_bytes(text)
    os.utime(file, ns=(before + 10**9, before + 10**9))


async def test_a_file_that_changes_vanishes_and_is_rubbish(
    cache: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "WATCH_SECONDS", 0.001)
    file = tmp_path / "running"
    feeds = cache.feeds(file)
    await feeds.load()
    assert feeds.all() == [], "there is no file yet"
    watching = asyncio.create_task(feeds.watch())

    def names() -> list[str]:
        return [str(image) for image in feeds.images()]

    write(file, b"app:1\n")
    await until(lambda: names() == [f"{HUB}/app:1"])
    [feed] = feeds.all()
    assert (feed.source, feed.expires_at) == ("file", None)
    write(file, b"app:2\nBad Name\n")
    await until(lambda: names() == [f"{HUB}/app:2"])
    write(file, b"\xff\xfe\x00")
    await asyncio.sleep(0.05)
    assert names() == [f"{HUB}/app:2"], "what it said last holds"
    file.unlink()
    await asyncio.sleep(0.05)
    assert names() == [f"{HUB}/app:2"]
    file.mkdir()
    await asyncio.sleep(0.05)
    assert names() == [f"{HUB}/app:2"]
    file.rmdir()
    write(file, b"")
    os.utime(file, (1_800_000_000, 1_800_000_000))
    await until(lambda: names() == [])
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def test_a_file_that_is_configured_no_longer_holds_nothing(
    tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "running"
    write(file, b"app:1\n")
    async with opened(tmp_path / "cache", clock) as cache:
        feeds = cache.feeds(file)
        await feeds.load()
        await feeds.report("node1", "app:2", 60)
        await feeds.save()
    file.unlink()
    async with opened(tmp_path / "cache", clock) as cache:
        again = cache.feeds(file)
        await again.load()
        assert {feed.source for feed in again.all()} == {"file", "node1"}, "it is only unreadable"
    async with opened(tmp_path / "cache", clock) as cache:
        without = cache.feeds(None)
        await without.load()
        assert {feed.source for feed in without.all()} == {"node1"}


async def test_t37_what_containers_run_stays_through_the_running_proxy(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "running"
    file.write_text("team/app:v1\n")
    upstream.add("team/app", ONE, "v1")
    proxy = await start(storage={"max_size": "256KiB", "in_use_file": str(file)})
    paths = ["manifests/v1", *(f"blobs/{digest}" for digest in ONE.blobs)]
    for path in paths:
        assert (await proxy.get(f"/v2/team/app/{path}")).status == 200
    for number in range(40):
        filler = upstream.add_blob("library/app", content.blob(20_000, seed=number))
        assert (await proxy.get(f"/v2/app/blobs/{filler}")).status == 200
        await proxy.settled()
    assert proxy.stats["cache"]["evictions"] > 10
    upstream.clear()
    for path in paths:
        assert (await proxy.get(f"/v2/team/app/{path}")).status == 200
    assert not upstream.requests
    assert Digest(ONE.digest) in proxy.held()
    assert json.dumps(proxy.stats)
