"""Each kind of event is emitted by its cause, with the data that subscribers rely on."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError

from proxy.core.errors import ContentMismatch
from proxy.core.names import Digest, Repo, Tag, Target
from proxy.runtime.events import EventKind
from proxy.services.bundle.contents import BundledBlob
from proxy.services.importing import Importer
from proxy.web.announcer import DENIED_SECONDS
from tests.access.people import basic, write_users
from tests.fakes import content, faults
from tests.fakes.clock import Clock
from tests.fakes.receiver import Receiver
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

IMAGE, OTHER = content.image(1, layers=(1000,)), content.image(2, layers=(1000,))
[LAYER] = IMAGE.layers
REPO = "/v2/library/app"
MANIFEST = f"{REPO}/manifests/latest"
NAME = "docker.io/library/app"


@dataclass
class Heard:
    """The events of a proxy, as a receiver gets them over HTTP."""

    receiver: Receiver

    def of(self, kind: EventKind) -> list[tuple[str, dict[str, Any]]]:
        return [(event["subject"], event["data"]) for event in self.receiver.of(kind)]

    async def have(self, kind: EventKind, count: int) -> list[tuple[str, dict[str, Any]]]:
        await until(lambda: len(self.of(kind)) >= count)
        await asyncio.sleep(0.05)  # for one too many
        found = self.of(kind)
        assert len(found) == count, found
        for _, data in found:
            assert data.keys() == DOCUMENTED[kind] or data.keys() == {"blobs", "bytes"}
        return found


def documented() -> dict[str, set[str]]:
    """The data of each kind of event, as the documents list them."""
    text = (Path(__file__).parents[2] / "docs/events.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ((?:`\w+` ?)+) \|", text, re.MULTILINE)
    return {kind: set(re.findall(r"\w+", names)) for kind, names in rows}


DOCUMENTED = documented()


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    async with Receiver() as receiver:
        yield Heard(receiver)


@pytest.fixture
def start(start: Start, heard: Heard) -> Start:
    """Start a proxy that sends all events to a receiver."""

    async def begin(**settings: Any) -> Proxy:
        known = {"url": heard.receiver.url, "events": [*EventKind]}
        return await start(**({"notifications": [known]} | settings))

    return begin


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)


async def test_pulls_are_gets_of_manifests_also_from_the_response_cache(
    proxy: Proxy, heard: Heard
) -> None:
    for _ in range(5):
        assert (await proxy.get(MANIFEST, User_Agent="docker/27" + "x" * 200)).status == 200
        assert (await proxy.head(MANIFEST)).status == 200
    page = (await proxy.get("/metrics")).body.decode()
    assert float(page.partition("\nmillpond_prepared_answers_total ")[2].split()[0]) > 0
    await proxy.get(f"{REPO}/manifests/{IMAGE.digest}")
    await proxy.get(f"{REPO}/blobs/{LAYER}")
    await proxy.get(f"{REPO}/manifests/absent")
    pulls = await heard.have(EventKind.PULL, 6)
    assert {subject for subject, _ in pulls[:5]} == {f"{NAME}:latest"}
    assert [data["outcome"] for _, data in pulls] == ["miss", *["hit"] * 5]
    assert pulls[-1][0] == f"{NAME}@{IMAGE.digest}"
    agent = ("docker/27" + "x" * 200)[:100]
    known = {"digest": IMAGE.digest, "client": "127.0.0.1", "bytes": len(IMAGE.manifest)}
    assert all(data.items() >= known.items() for _, data in pulls)
    assert {data["user_agent"] for _, data in pulls[:5]} == {agent}


async def test_nothing_is_emitted_for_pulls_without_a_subscriber(start: Start) -> None:
    proxy = await start(notifications=[])
    for _ in range(4):
        await proxy.get(MANIFEST)
    with proxy.app.events.subscribed([EventKind.PULL]) as subscription:
        await proxy.get(MANIFEST)
        first = await subscription.next()
    emitted = proxy.app.events.recent()
    assert first.serial == len(emitted) + 1, "the pulls before have no number"


async def test_content_that_arrives_is_cached_once(
    proxy: Proxy, heard: Heard, clock: Clock, upstream: FakeUpstream
) -> None:
    for path in (MANIFEST, f"{REPO}/blobs/{LAYER}"):
        await asyncio.gather(proxy.get(path), proxy.get(path))
    cached = dict(await heard.have(EventKind.CACHED, 2))
    assert cached.keys() == {IMAGE.digest, LAYER}
    known = {"upstream": "docker.io", "repository": "library/app", "source": "registry"}
    assert all(data.items() >= known.items() for data in cached.values())
    assert (cached[LAYER]["bytes"], cached[IMAGE.digest]["bytes"]) == (1000, len(IMAGE.manifest))
    assert all(0 <= data["seconds"] < 30 for data in cached.values())
    clock.advance(10 * 86400)
    upstream.remove_tag("library/app", "latest")
    await proxy.get(MANIFEST, Cache_Control="no-cache")
    await heard.have(EventKind.CACHED, 2)


async def test_a_tag_that_moves_names_both_digests(
    proxy: Proxy, heard: Heard, upstream: FakeUpstream
) -> None:
    await proxy.get(MANIFEST)
    assert await heard.have(EventKind.TAG_MOVED, 1) == [
        (f"{NAME}:latest", {"from": None, "to": IMAGE.digest})
    ]
    await proxy.get(MANIFEST, Cache_Control="no-cache")
    await heard.have(EventKind.TAG_MOVED, 1)
    upstream.add("library/app", OTHER)
    await proxy.head(MANIFEST, Cache_Control="no-cache")
    assert (await heard.have(EventKind.TAG_MOVED, 2))[-1] == (
        f"{NAME}:latest",
        {"from": IMAGE.digest, "to": OTHER.digest},
    )


async def test_what_is_evicted_is_told_one_by_one(
    start: Start, heard: Heard, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(storage={"max_size": 100 * 1024})
    digests = [upstream.add_blob("library/app", content.blob(40 * 1024, n)) for n in range(3)]
    for digest in digests:
        await proxy.get(f"{REPO}/blobs/{digest}")
        await proxy.settled()
        clock.advance(1)
    [(subject, data)] = await heard.have(EventKind.EVICTED, 1)
    assert (subject, data["bytes"]) == (digests[0], 40 * 1024)
    assert clock() - 4 < data["last_used"] < clock()


async def test_many_evictions_of_one_run_are_told_as_one(
    start: Start, heard: Heard, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start()
    digests = [upstream.add_blob("library/app", content.blob(10, n)) for n in range(102)]
    for digest in digests:
        await proxy.get(f"{REPO}/blobs/{digest}")
    await proxy.settled()
    await until(lambda: len(proxy.held()) == 102)
    assert await proxy.app.content.evictor.evict(1 << 40) == (102, 102 * 4096)
    assert await heard.have(EventKind.EVICTED, 1) == [
        ("cache", {"blobs": 102, "bytes": 102 * 4096})
    ]


async def test_wrong_bytes_of_an_upstream_are_corrupt(
    proxy: Proxy, heard: Heard, upstream: FakeUpstream
) -> None:
    upstream.fault(faults.corrupt(), kind="blob", times=1)
    upstream.fault(faults.corrupt(), kind="manifest", method="GET", times=1)
    await proxy.get(f"{REPO}/manifests/{IMAGE.digest}")
    with pytest.raises(ClientPayloadError):
        await proxy.get(f"{REPO}/blobs/{LAYER}")
    corrupt = dict(await heard.have(EventKind.CORRUPT, 2))
    assert corrupt.keys() == {IMAGE.digest, LAYER}
    for digest, data in corrupt.items():
        known = {"upstream": "docker.io", "repository": "library/app", "where": "upstream"}
        assert data.items() >= known.items()
        assert data["found"].startswith("sha256:")
        assert data["found"] != digest


async def test_content_that_goes_bad_on_the_disk_is_corrupt(proxy: Proxy, heard: Heard) -> None:
    await proxy.get(MANIFEST)
    await proxy.get(f"{REPO}/blobs/{LAYER}")
    await proxy.settled()
    path = proxy.storage / "blobs" / Path(*LAYER.split(":"))
    path.chmod(0o600)
    path.write_bytes(b"x" * 1000)
    verdict = await proxy.app.content.faults.check(Digest(LAYER), _at_once)
    assert verdict.problem is not None
    await proxy.app.content.faults.quarantine(Digest(LAYER), verdict.problem)
    [(subject, data)] = await heard.have(EventKind.CORRUPT, 1)
    assert subject == LAYER
    assert (data["where"], data["repository"]) == ("disk", "library/app")
    assert data["found"] == content.digest(b"x" * 1000)


async def _at_once(_: int) -> None:
    return


async def test_an_upstream_that_fails_is_down_once_and_then_up(
    start: Start, heard: Heard, upstream: FakeUpstream
) -> None:
    patience = {"retries": 0, "failures": 2, "pause": "50ms", "cool_down": 0}
    proxy = await start(patience=patience)
    upstream.fault(faults.status(503))
    for number in range(4):
        assert (await proxy.get(f"{REPO}/manifests/t{number}")).status == 502
    [(subject, data)] = await heard.have(EventKind.UPSTREAM_DOWN, 1)
    assert (subject, "503" in data["cause"]) == ("docker.io", True)
    upstream.heal()
    async with asyncio.timeout(30):
        while (await proxy.get(MANIFEST)).status != 200:
            await asyncio.sleep(0.02)
    [(subject, data)] = await heard.have(EventKind.UPSTREAM_UP, 1)
    assert (subject, data["seconds_down"] >= 0) == ("docker.io", True)


async def test_a_low_budget_is_told_once_a_window(
    proxy: Proxy, heard: Heard, upstream: FakeUpstream, clock: Clock
) -> None:
    upstream.behaviour.rate_limit = RateLimit(limit=10, remaining=3, window=3600)
    images = [content.image(10 + n) for n in range(3)]
    for number, image in enumerate(images):
        upstream.add("library/app", image, tags=[f"n{number}"])
    for number in range(3):
        await proxy.get(f"{REPO}/manifests/n{number}")
    [(subject, data)] = await heard.have(EventKind.BUDGET_LOW, 1)
    assert (subject, data["limit"], data["remaining"]) == ("docker.io", 10, 1)
    assert data["refills_at"] == clock() + 3600
    clock.advance(3601)
    upstream.behaviour.rate_limit = RateLimit(limit=10, remaining=2, window=3600)
    upstream.add("library/app", content.image(20), tags=["later"])
    await proxy.get(f"{REPO}/manifests/later")
    await heard.have(EventKind.BUDGET_LOW, 2)


async def test_a_rule_that_denies_is_told_once_a_minute(
    start: Start, heard: Heard, tmp_path: Path
) -> None:
    rules = [{"deny": "pull", "images": ["docker.io/library/miner"], "because": "SEC-12"}]
    users = write_users(tmp_path / "users", ada="secret")
    access = {"htpasswd_file": str(users), "rules": [*rules, {"allow": "pull", "to": ["user:*"]}]}
    policy = {"name": "none", "images": ["docker.io/library/app"], "deny": True, "because": "P1"}
    proxy = await start(access=access, policies=[policy])
    login = basic("ada", "secret")
    for _ in range(3):
        path = "/v2/library/miner/manifests/1"
        assert (await proxy.head(path, Authorization=login)).status in (403, 404)
        assert (await proxy.get(path, Authorization=login)).status in (403, 404)
        assert (await proxy.get(f"{REPO}/blobs/{LAYER}")).status == 401, "a challenge is no denial"
        assert (await proxy.get(f"{REPO}/blobs/{LAYER}", Authorization=login)).status == 403
    assert DENIED_SECONDS >= 60
    first, second = await heard.have(EventKind.DENIED, 2)
    assert first == ("docker.io/library/miner:1", {"client": "ada", "because": "SEC-12"})
    assert (second[0], second[1]["client"]) == (NAME, "ada")
    assert "P1" in second[1]["because"]


async def test_a_restored_tag_is_no_move(proxy: Proxy, heard: Heard) -> None:
    await proxy.get(MANIFEST)
    await heard.have(EventKind.TAG_MOVED, 1)
    target, tag = Target("docker.io", Repo("library/app")), Tag("latest")
    record = await proxy.app.content.tags.get(target, tag)
    await proxy.app.content.tags.set(target, tag, None)
    await proxy.app.content.tags.restore(target, tag, record)
    await heard.have(EventKind.TAG_MOVED, 1)


async def test_content_of_a_bundle_is_cached_or_corrupt(proxy: Proxy, heard: Heard) -> None:
    importer = Importer(proxy.app.content, None, ["docker.io"])  # type: ignore[arg-type]

    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        yield data

    blob = BundledBlob(Digest(LAYER), 1000, None, is_public=True)
    manifest = BundledBlob(
        Digest(IMAGE.digest), len(IMAGE.manifest), IMAGE.media_type, is_public=True
    )
    for one in (blob, manifest):
        with pytest.raises(ContentMismatch):
            await importer.receive(one, pieces(b"x" * one.size))
    await importer.receive(blob, pieces(IMAGE.blobs[LAYER]))
    await importer.receive(manifest, pieces(IMAGE.manifest))
    corrupt, cached = await heard.have(EventKind.CORRUPT, 2), await heard.have(EventKind.CACHED, 2)
    for found in (corrupt, cached):
        assert [subject for subject, _ in found] == [LAYER, IMAGE.digest]
    assert [data["where"] for _, data in corrupt] == ["bundle", "bundle"]
    assert [data["found"] for _, data in corrupt] == [
        content.digest(b"x" * one.size) for one in (blob, manifest)
    ]
    assert [(data["source"], data["upstream"]) for _, data in cached] == [("import", None)] * 2
